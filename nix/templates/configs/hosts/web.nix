# The configuration of the host "web". Begin with what `nixos-generate-config` wrote on it.
{ inputs, lib, ... }:
{
  networking.hostName = "web";
  system.stateVersion = "24.05";

  # Only so that the template evaluates: put the real boot loader and file systems here.
  boot.loader.grub.enable = lib.mkDefault false;
  fileSystems."/" = lib.mkDefault { device = "/dev/disk/by-label/nixos"; fsType = "ext4"; };

  # What an app brings, once it is an input:
  # environment.systemPackages = [ inputs.app.packages.x86_64-linux.default ];
}
