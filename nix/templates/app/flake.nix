{
  description = "An app that forge checks, merges and deploys";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      # The repo of your host configurations, and the name this app has among the inputs of its flake.nix.
      # Anything git can push to: a path such as /var/lib/forge/repos/configs.git on the machine of forge, or ssh://….
      configs = "";
      input = "app";

      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = f: nixpkgs.lib.genAttrs systems (system: f system nixpkgs.legacyPackages.${system});
      app = pkgs: name: text: {
        type = "app";
        program = "${pkgs.writeShellScript name text}";
      };
    in {
      # What this repo is for: put your own package here …
      packages = each (_: pkgs: {
        default = pkgs.writeShellScriptBin "hello" ''
          echo "hello, world"
        '';
      });

      # … and what must hold before a branch is merged here.
      checks = each (system: pkgs: {
        greets = pkgs.runCommand "greets" { } ''
          ${self.packages.${system}.default}/bin/hello | grep -q hello
          touch $out
        '';
      });

      apps = each (_: pkgs: {
        # forge runs this for each branch; the branch merges when it ends well.
        pre-merge = app pkgs "pre-merge" ''
          exec nix --extra-experimental-features 'nix-command flakes' flake check --print-build-logs
        '';

        # forge runs this when base has moved: it asks the repo of the host configurations to take the new commit.
        post-merge = app pkgs "post-merge" ''
          configs=''${FORGE_CONFIGS_URL:-${configs}}
          if [ -z "$configs" ]; then
            echo "nothing to deploy: name the repo of your host configurations at the top of flake.nix (configs = …)"
            exit 0
          fi
          exec forge bump "$configs" ${input}
        '';
      });
    };
}
