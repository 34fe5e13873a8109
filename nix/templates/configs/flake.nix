{
  description = "The NixOS hosts that forge deploys";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # An app that is deployed here; its post-merge moves this input with each merge. Jobs fetch it from there, and hosts that build.
    # app.url = "git+http://myserver:3030/r/app.git?ref=main";
  };

  outputs = inputs@{ self, nixpkgs, ... }:
    let
      # Each host: its platform, the login that deploys to it, where it is built ("host", or "forge" and then copied), its configuration.
      # Without a login (ssh = "") its deployment says what to do by hand, and passes.
      hosts.web = {
        system = "x86_64-linux";
        ssh = ""; # root@web.example.org
        build = "host";
        modules = [ ./hosts/web.nix ];
      };
      # Where hosts that build fetch this repo from; "" is its address on forge (FORGE_URL, which they must reach then).
      source = ""; # git+ssh://forge@myserver/configs.git, say

      # The checks and deployments run on the machine of forge.
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      app = pkgs: name: text: {
        type = "app";
        program = "${pkgs.writeShellScript name text}";
      };
    in {
      nixosConfigurations = builtins.mapAttrs (_: host: nixpkgs.lib.nixosSystem {
        inherit (host) system modules;
        specialArgs = { inherit inputs; };
      }) hosts;

      # Evaluated in whole by `nix flake show` (that is what seq is for), so that a host that does not evaluate is not merged.
      packages = each (_: builtins.mapAttrs (_: host:
        let system = host.config.system.build.toplevel; in builtins.seq system.drvPath system) self.nixosConfigurations);

      apps = each (pkgs: {
        # forge runs this for each branch; it takes seconds, since nothing is built.
        pre-merge = app pkgs "pre-merge" ''
          exec nix --extra-experimental-features 'nix-command flakes' flake show
        '';

        # forge runs this when base has moved. Each host is told one command, and its exit code says how that went.
        # forge doctor --ssh root@web.example.org   makes the key for it, and says what the host has to know.
        post-merge = app pkgs "post-merge" ''
          source=${source}
          flake=''${source:-git+$FORGE_URL/r/$FORGE_REPO.git}"?ref=$FORGE_BRANCH&rev=$FORGE_COMMIT"
          status=0
          nix() { command nix --extra-experimental-features 'nix-command flakes' "$@"; }
          deploy() { # name, login, where it is built
            target="$flake#$1"
            switch="nixos-rebuild switch --flake ''${target@Q}"
            if [ -z "$2" ] || [ -z "$FORGE_SSH_CONFIG" ]; then
              echo "deploy by hand: $switch   (on $1, as root)"
              [ -n "$2" ] || echo "  to have it done, name its login in flake.nix: hosts.$1.ssh"
              [ -n "$FORGE_SSH_CONFIG" ] || echo "  to have it done, forge needs a deploy key: see FORGE_SECRETS_DIR and forge doctor --ssh"
              return
            fi
            echo "deploying $FORGE_COMMIT to $1 ($2)"
            if [ "$3" = forge ]; then
              system=.#nixosConfigurations.$1.config.system.build.toplevel
              nix build --no-link --print-build-logs "$system" && system=$(nix eval --raw "$system") &&
                nix copy --to "ssh://$2" "$system" || { echo "$1 was not deployed: it was not built or copied"; status=1; return; }
              switch="nix-env --profile /nix/var/nix/profiles/system --set $system && $system/bin/switch-to-configuration switch"
            fi
            ssh -F "$FORGE_SSH_CONFIG" -- "$2" "$switch" || { echo "$1 was not deployed: exit code $?"; status=1; }
          }
          ${builtins.concatStringsSep "\n" (map (name: ''deploy ${name} "${hosts.${name}.ssh}" ${hosts.${name}.build}'') (builtins.attrNames hosts))}
          exit $status
        '';
      });
    };
}
