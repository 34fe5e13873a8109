{
  description = "A git forge in one file, for one small server and people who love Nix";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      python = pkgs: pkgs.python3.withPackages (p: [ p.bottle p.waitress p.psutil ]);
      # what the suite runs on; what is missing is skipped by name
      testPython = pkgs: pkgs.python3.withPackages (p: [
        p.bottle p.waitress p.psutil p.pytest p.pytest-xdist p.pytest-timeout p.hypothesis p.setuptools p.pip
      ]);
      tools = pkgs: [ pkgs.git pkgs.curl pkgs.nix pkgs.util-linux pkgs.bubblewrap ];
      app = pkgs: name: text: {
        type = "app";
        program = "${pkgs.writeShellScript name text}";
        meta.description = name;
      };
    in {
      packages = each (pkgs: rec {
        default = forge;
        forge = pkgs.python3Packages.buildPythonApplication {
          pname = "forge";
          version = "0.1.0";
          src = self;
          pyproject = true;
          build-system = [ pkgs.python3Packages.setuptools ];
          dependencies = with pkgs.python3Packages; [ bottle waitress psutil ];
          makeWrapperArgs = [ "--prefix PATH : ${pkgs.lib.makeBinPath [ pkgs.git pkgs.curl pkgs.bubblewrap ]}" ];
          doCheck = false; # the suite needs real git, Nix and processes: apps.pre-merge runs it
          meta = {
            description = "A git forge in one file";
            license = pkgs.lib.licenses.mit;
            mainProgram = "forge";
          };
        };
      });

      apps = each (pkgs: {
        default = {
          type = "app";
          program = "${self.packages.${pkgs.system}.forge}/bin/forge";
        };
        pre-merge = app pkgs "pre-merge" ''
          export PATH=${pkgs.lib.makeBinPath (tools pkgs)}:$PATH
          exec ${testPython pkgs}/bin/python -m pytest -n auto
        '';
      });

      devShells = each (pkgs: {
        default = pkgs.mkShell { packages = tools pkgs ++ [ (testPython pkgs) pkgs.just pkgs.ruff pkgs.mypy ]; };
      });
    };
}
