{
  description = "A git forge in one file, for one small server and people who love Nix";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = f: lib.genAttrs systems (system: f system nixpkgs.legacyPackages.${system});
      python = pkgs: pkgs.python3.withPackages (p: [ p.bottle p.waitress p.psutil ]);
      # what the suite runs on; what is missing is skipped by name
      testPython = pkgs: pkgs.python3.withPackages (p: [
        p.bottle p.waitress p.psutil p.pytest p.pytest-xdist p.pytest-timeout p.hypothesis p.setuptools p.pip
      ]);
      tools = pkgs: [ pkgs.git pkgs.curl pkgs.nix pkgs.util-linux pkgs.bubblewrap pkgs.openssh ];
      app = pkgs: name: description: text: {
        type = "app";
        program = "${pkgs.writeShellScript name text}";
        meta = { inherit description; };
      };
    in {
      # A Python that knows the packages runs the module itself, since forge starts itself again for hooks and jobs by sys.executable.
      packages = each (_: pkgs: rec {
        default = forge;
        forge = pkgs.runCommand "forge" {
          meta = {
            description = "A git forge in one file";
            license = lib.licenses.mit;
            mainProgram = "forge";
          };
        } ''
          mkdir -p $out/bin $out/share/forge
          cp -r ${./forge.py} $out/share/forge/forge.py
          cp -r ${./hooks} $out/share/forge/hooks
          cp -r ${./views} $out/share/forge/views
          ${python pkgs}/bin/python -m compileall -q --invalidation-mode unchecked-hash -d forge -o 0 $out/share/forge/forge.py
          cat > $out/bin/forge <<END
          #!${pkgs.runtimeShell}
          PATH=${lib.makeBinPath [ pkgs.git pkgs.curl pkgs.bubblewrap ]}:\$PATH
          exec ${python pkgs}/bin/python -c 'import sys; sys.path.insert(0, "$out/share/forge"); import forge; sys.exit(forge.main())' "\$@"
          END
          chmod +x $out/bin/forge
        '';
      });

      apps = each (system: pkgs: {
        default = {
          type = "app";
          program = "${self.packages.${system}.forge}/bin/forge";
          meta.description = "forge itself";
        };
        pre-merge = app pkgs "pre-merge" "what must hold before a branch is merged" ''
          export PATH=${lib.makeBinPath (tools pkgs)}:$PATH
          nix --extra-experimental-features 'nix-command flakes' flake check --print-build-logs || exit
          exec ${testPython pkgs}/bin/python -m pytest -n auto
        '';
        # The forge that serves this repo says where to, if anywhere:
        # git config forge.postMerge 'FORGE_CONFIGS_URL=… nix run .#post-merge'
        post-merge = app pkgs "post-merge" "asks the repo of the host configurations to take what was merged" ''
          if [ -z "$FORGE_CONFIGS_URL" ]; then
            echo "nothing to deploy: FORGE_CONFIGS_URL names no repo of host configurations"
            exit 0
          fi
          exec forge bump "$FORGE_CONFIGS_URL" "''${FORGE_CONFIGS_INPUT:-forge}"
        '';
      });

      # That the package starts, and that the module makes its units with the nixpkgs of the lock.
      checks = each (system: pkgs: {
        package = pkgs.runCommand "forge-starts" { } ''
          ${self.packages.${system}.forge}/bin/forge --version > $out
        '';
        module = pkgs.writeText "forge-unit" (builtins.toJSON
          (lib.nixosSystem {
            inherit system;
            modules = [
              self.nixosModules.default
              {
                services.forge = { enable = true; domain = "forge.example.org"; repos.app = { }; };
                system.stateVersion = "24.05";
              }
            ];
          }).config.systemd.services.forge.serviceConfig);
      });

      nixosModules.default = import ./nix/module.nix self;

      templates = rec {
        default = app;
        app = {
          path = ./nix/templates/app;
          description = "A repo that forge checks, merges and deploys";
        };
        configs = {
          path = ./nix/templates/configs;
          description = "The NixOS hosts that forge deploys";
        };
      };

      devShells = each (_: pkgs: {
        default = pkgs.mkShell { packages = tools pkgs ++ [ (testPython pkgs) pkgs.just pkgs.ruff pkgs.mypy ]; };
      });
    };
}
