# Stands in for nixpkgs, which cannot be fetched where the tests run: as much of it as our flake, module and templates use.
# Its packages are those of the machine; @python@ is the Python of the tests.
{
  outputs = { self }:
    let
      lib = import ./lib.nix;
      machine = { outPath = "/usr"; name = "of-the-machine"; };
      pkgsFor = system: rec {
        inherit lib system;
        stdenv.hostPlatform = { inherit system; };
        runtimeShell = "/bin/sh";
        runCommand = name: env: text: derivation ({
          inherit name system text;
          builder = "/bin/sh";
          args = [ "-ec" "eval \"$text\"" ];
          PATH = "/usr/bin:/bin";
          preferLocalBuild = true;
          allowSubstitutes = false;
        } // removeAttrs env [ "meta" "nativeBuildInputs" ]) // { meta = env.meta or { }; };
        script = shell: place: name: body: runCommand name { inherit body; meta.mainProgram = name; }
          "mkdir -p $(dirname $out${place}); printf '#!${shell}\\n%s' \"$body\" > $out${place}; chmod +x $out${place}";
        writeShellScript = script "/bin/bash" "";
        writeShellScriptBin = name: script "/bin/bash" "/bin/${name}" name;
        writeText = name: body: runCommand name { inherit body; } "printf %s \"$body\" > $out";
        mkShell = { packages }: runCommand "shell" { } "touch $out";
        python3.withPackages = choose: builtins.seq
          (map (package: package) (choose (lib.genAttrs (import ./python-packages.nix) (name: name))))
          (script "/bin/sh" "/bin/python" "python" "exec @python@ \"$@\"");
      } // lib.genAttrs
        [ "git" "curl" "nix" "util-linux" "bubblewrap" "openssh" "just" "ruff" "mypy" "coreutils" "gnugrep" "bash" ]
        (name: machine // { pname = name; });
    in {
      lib = lib // {
        nixosSystem = { system, modules, specialArgs ? { } }:
          let
            found = lib.evalModules { inherit modules; specialArgs = { pkgs = pkgsFor system; } // specialArgs; };
          in found // {
            config = found.config // {
              system.build.toplevel = (pkgsFor system).writeText "nixos-system" (builtins.toJSON found.config);
            };
          };
      };
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] pkgsFor;
    };
}
