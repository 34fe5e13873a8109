# services.forge: the units of `forge unit`, the user, access over ssh, and Caddy before it. `forge` is our flake.
forge: { config, lib, pkgs, ... }:
let
  cfg = config.services.forge;
  inherit (lib) mkEnableOption mkIf mkMerge mkOption optional optionalAttrs optionals types;
  # Paths are kept as text: one that is a Nix path would be copied into the store, for all to read.
  text = path: if path == null then null else toString path;
  secretsDir = text cfg.secretsDir;
  knownHosts = pkgs.writeText "known_hosts" (lib.concatMapStrings (line: "${line}\n") cfg.knownHosts);
  # What jobs see of it: all, or a folder for each repo with links to its secrets.
  folder = place: "d ${place} 0700 ${cfg.user} ${cfg.group} -";
  link = place: target: "L+ ${place} - - - - ${target}";
  seenAt = place: files: [ (folder place) (folder "${place}/ssh") ]
    ++ optional (cfg.knownHosts != [ ]) (link "${place}/ssh/known_hosts" knownHosts)
    ++ builtins.concatLists (lib.mapAttrsToList (name: file:
      [ (folder (builtins.dirOf "${place}/${name}")) (link "${place}/${name}" (text file)) ]) files);
  secretRules = if cfg.secrets == { } then seenAt secretsDir { }
    else lib.unique ([ (folder secretsDir) (folder "${secretsDir}/repos") ]
      ++ builtins.concatLists (lib.mapAttrsToList (repo: seenAt "${secretsDir}/repos/${repo}") cfg.secrets));
  names = pattern: set: builtins.all (name: builtins.match pattern name != null) (builtins.attrNames set);
  listen = "${if lib.hasInfix ":" cfg.host then "[${cfg.host}]" else cfg.host}:${toString cfg.port}";
  anywhere = builtins.elem cfg.host [ "0.0.0.0" "::" ];
  exe = "${cfg.package}/bin/forge";

  settings = {
    FORGE_DATA_DIR = cfg.dataDir;
    FORGE_HOST = cfg.host;
    FORGE_PORT = cfg.port;
    FORGE_URL = cfg.url;
    FORGE_MAX_JOBS = cfg.maxJobs;
    FORGE_JOB_TIMEOUT = cfg.jobTimeout;
    FORGE_LOG_LIMIT = cfg.logLimit;
    FORGE_LOG_DAYS = cfg.logDays;
    FORGE_JOB_MEMORY = cfg.jobMemory;
    FORGE_JOB_PROCESSES = cfg.jobProcesses;
    FORGE_SECRETS_DIR = secretsDir;
    FORGE_PRIVATE = if cfg.private then 1 else 0;
    FORGE_SANDBOX = cfg.sandbox;
    FORGE_NOTIFY = cfg.notify;
  };

  # The repos that are declared: made when they are missing, and their settings brought up to date.
  makeRepos = pkgs.writeShellScript "forge-repos" (lib.concatStrings (lib.mapAttrsToList (name: repo:
    let
      path = "${cfg.dataDir}/repos/${name}.git";
      values = {
        "forge.protect" = repo.protect;
        "forge.preMerge" = repo.preMerge;
        "forge.postMerge" = repo.postMerge;
        "forge.timeout" = repo.timeout;
        "forge.reuse" = repo.reuse;
        "forge.secrets" = repo.secrets;
      };
      set = key: value: "git -C ${path} config ${key} ${lib.escapeShellArg (if lib.isBool value then lib.boolToString value else value)}\n";
    in ''
      [ -d ${path} ] || ${exe} create ${name} --base ${lib.escapeShellArg repo.base} || exit
    '' + lib.concatStrings (lib.mapAttrsToList set (lib.filterAttrs (_: value: value != null) values))) cfg.repos));

  # As `forge unit` has it, where it says why: jobs are children of the service, and live under all of it.
  hardening = {
    NoNewPrivileges = "yes";
    CapabilityBoundingSet = "";
    ProtectSystem = "strict";
    ProtectHome = if builtins.match "/(home|root)/.*" cfg.dataDir == null then "yes" else "read-only";
    PrivateTmp = "yes";
    PrivateMounts = "yes";
    PrivateDevices = "yes";
    ProtectClock = "yes";
    ProtectControlGroups = "yes";
    ProtectKernelModules = "yes";
    LockPersonality = "yes";
    RestrictRealtime = "yes";
    RestrictAddressFamilies = "AF_UNIX AF_INET AF_INET6 AF_NETLINK";
    RestrictNamespaces = "user mnt pid ipc";
    SystemCallArchitectures = "native";
    SystemCallFilter = "@system-service @mount";
    SystemCallErrorNumber = "EPERM";
    ReadWritePaths = [ cfg.dataDir ];
  } // optionalAttrs (cfg.sandbox == "none") {
    # nothing of ours needs namespaces and mounts then, and jobs that outlive the service keep its /tmp
    PrivateTmp = "no";
    RestrictNamespaces = "yes";
    SystemCallFilter = "@system-service";
    ReadWritePaths = [ cfg.dataDir "/tmp" "/var/tmp" ];
  };

  option = type: default: example: description: mkOption { inherit type default example description; };
in {
  options.services.forge = {
    enable = mkEnableOption "forge, a git forge in one file";
    package = mkOption {
      type = types.package;
      default = forge.packages.${pkgs.stdenv.hostPlatform.system}.forge;
      defaultText = lib.literalExpression "forge.packages.\${system}.forge";
      example = lib.literalExpression "inputs.forge.packages.x86_64-linux.forge";
      description = "The forge that runs.";
    };
    user = option types.str "forge" "git" ''
      The user that it runs as and whom people reach over ssh; made when it is called `forge`.
    '';
    group = option types.str "forge" "git" "Its group; made when it is called `forge`.";
    dataDir = option (types.strMatching "/[A-Za-z0-9/._-]+") "/var/lib/forge" "/srv/forge" ''
      All state (`FORGE_DATA_DIR`), and the home of the user. Not in `/tmp`, nor in what systemd removes when the service stops.
    '';
    host = option types.str "127.0.0.1" "0.0.0.0" "The address to listen at (`FORGE_HOST`), without a name service.";
    port = option types.port 3030 8080 "The port to listen at (`FORGE_PORT`).";
    url = mkOption {
      type = types.nullOr types.str;
      default = if cfg.domain == null then null else "https://${cfg.domain}";
      defaultText = lib.literalExpression ''"https://''${domain}"'';
      example = "http://forge.lan:3030";
      description = "What the links that are printed begin with (`FORGE_URL`); requests for other hosts are refused.";
    };
    domain = option (types.nullOr types.str) null "forge.example.org" ''
      The name people reach it by. Caddy then answers for it with TLS, whose certificate it gets by itself, and passes on to forge.
    '';
    openFirewall = option types.bool false true "Let others reach Caddy (where there is a `domain`) or else the `port`.";
    mergePasswordFile = option (types.nullOr types.path) null "/run/agenix/forge-merge-password" ''
      A file with the merge password, readable for root: systemd hands it on (`LoadCredential=`), when the service starts.
    '';
    secretsDir = option (types.nullOr types.path) null "/var/lib/forge-secrets" ''
      Directory that only post-merge jobs see (`FORGE_SECRETS_DIR`), with the deploy key in `ssh/`; made when it is missing.
      It has to outlive a stop of the service, as its jobs do: not the directory of its credentials.
    '';
    secrets = option (types.attrsOf (types.attrsOf types.path)) { } (lib.literalExpression ''
      {
        app.token = config.age.secrets.app-token.path;
        configs."ssh/id_ed25519" = config.sops.secrets.deploy-key.path;
      }
    '') ''
      What the post-merge jobs of each repo see of `secretsDir`: by repo, the names in its folder, and the files they link to, which the
      user must be able to read. With any of them no job sees anything else. `repos.<name>.secrets` lends one repo's to another.
    '';
    knownHosts = option (types.listOf types.str) [ ] [ "web.example.org ssh-ed25519 AAAAC3…" ] ''
      The hosts that post-merge jobs may reach over ssh, as lines of `known_hosts`, for `ssh/known_hosts` in `secretsDir`, or in each
      folder of `secrets`.
    '';
    sshKeys = option (types.listOf types.str) [ ] [ "ssh-ed25519 AAAAC3… ada@laptop" ] ''
      Public keys of the people who may clone and push as `user`@host:repo.git, and ask as in `ssh forge@host jobs`.
      They get `forge shell`, and no other.
    '';
    maxJobs = option (types.nullOr (types.ints.between 1 1000)) null 4 "Checks at a time (`FORGE_MAX_JOBS`); null: as many as there are CPUs.";
    jobTimeout = option types.ints.positive 3600 600 "Seconds that a job may take (`FORGE_JOB_TIMEOUT`).";
    logLimit = option types.ints.positive 1073741824 104857600 "Bytes that a job may print (`FORGE_LOG_LIMIT`).";
    logDays = option types.ints.unsigned 0 90 "Logs older than this are removed (`FORGE_LOG_DAYS`); 0: never.";
    jobMemory = option (types.nullOr types.ints.positive) null 8589934592 "Bytes that a job's processes may take (`FORGE_JOB_MEMORY`).";
    jobProcesses = option (types.nullOr types.ints.positive) null 500 "Processes that a job may have (`FORGE_JOB_PROCESSES`).";
    private = option types.bool false true "Answer only who is logged in or holds the token (`FORGE_PRIVATE`).";
    sandbox = option (types.enum [ "auto" "bwrap" "none" ]) "bwrap" "none" ''
      `bwrap`: jobs run under bubblewrap or not at all; `none`: without; `auto`: with it where it works (`FORGE_SANDBOX`).
    '';
    notify = option (types.nullOr types.str) null "curl -fsS -d @- https://example.org/hook" ''
      A command that is told the news, one JSON object on its standard input each time (`FORGE_NOTIFY`).
    '';
    git = {
      name = option types.str "forge" "Deployments" "Who wrote the commits that jobs make, such as those of `forge bump`.";
      email = mkOption {
        type = types.str;
        default = "forge@${if cfg.domain == null then "localhost" else cfg.domain}";
        defaultText = lib.literalExpression ''"forge@''${domain}"'';
        example = "ops@example.org";
        description = "The mail address in them. Both become the default of the whole machine (`/etc/gitconfig`): jobs read no other.";
      };
    };
    path = option (types.listOf types.package) [ ] (lib.literalExpression "[ pkgs.just ]") ''
      More programs for jobs and notices, beside git, Nix, ssh, curl and what every service has.
    '';
    repos = mkOption {
      default = { };
      example = lib.literalExpression ''{ app = { base = "main"; protect = true; }; }'';
      description = "Repos that are made when they are missing. One that is no longer named here stays: `forge delete` removes it.";
      type = types.attrsOf (types.submodule {
        options = {
          base = option types.str "main" "master" "The default branch of a new repo.";
          protect = option types.bool false true "Base takes no direct push but its first (`forge.protect`).";
          preMerge = option (types.nullOr types.str) null "make test" "A command instead of the detected check (`forge.preMerge`).";
          postMerge = option (types.nullOr types.str) null "./deploy" "A command instead of the detected deployment (`forge.postMerge`).";
          timeout = option (types.nullOr types.ints.positive) null 600 "Seconds that its jobs may take (`forge.timeout`).";
          secrets = option (types.nullOr types.str) null "web" "The repo whose secrets its deployments see, instead of its own (`forge.secrets`).";
          reuse = option types.bool true false "Whether a verdict counts for an equal tree, too (`forge.reuse`).";
        };
      });
    };
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions = [{
        assertion = cfg.knownHosts == [ ] || cfg.secretsDir != null;
        message = "services.forge.knownHosts are kept in services.forge.secretsDir; set that, too.";
      } {
        assertion = cfg.secrets == { } || cfg.secretsDir != null;
        message = "services.forge.secrets are kept in services.forge.secretsDir; set that, too.";
      } {
        assertion = names "[A-Za-z0-9][A-Za-z0-9._-]*" cfg.secrets
          && builtins.all (names "([A-Za-z0-9_-][A-Za-z0-9._-]*/)?[A-Za-z0-9_-][A-Za-z0-9._-]*") (builtins.attrValues cfg.secrets);
        message = "services.forge.secrets: a repo, and in it a file or folder/file, are letters, digits and ._- without a leading dot.";
      }];

      systemd.sockets.forge = {
        description = "forge, a git forge: where it listens, also while it restarts";
        wantedBy = [ "sockets.target" ];
        listenStreams = [ listen ];
        socketConfig = optionalAttrs (!anywhere) { FreeBind = true; };
      };

      systemd.services.forge = {
        description = "forge, a git forge";
        wantedBy = [ "multi-user.target" ];
        requires = [ "forge.socket" ];
        wants = [ "network-online.target" ];
        after = [ "forge.socket" "network-online.target" ];
        startLimitIntervalSec = 0;
        # A new version is started at once, while the socket stays and jobs go on, the one that deploys it among them.
        stopIfChanged = false;
        path = [ pkgs.git config.nix.package pkgs.openssh pkgs.curl pkgs.bubblewrap pkgs.util-linux pkgs.bash ] ++ cfg.path;
        environment = builtins.mapAttrs (_: toString) (lib.filterAttrs (_: value: value != null) settings) // {
          NIX_CONFIG = "extra-experimental-features = nix-command flakes";
        };
        serviceConfig = {
          ExecStart = "${exe} serve";
          Type = "notify";
          NotifyAccess = "main";
          WatchdogSec = "60";
          Restart = "always";
          RestartSec = "1";
          TimeoutStopSec = "30";
          KillMode = "process"; # jobs live on
          OOMPolicy = "continue"; # a job that takes all memory ends, not the service
          User = cfg.user;
          Group = cfg.group;
          WorkingDirectory = cfg.dataDir;
        }
        // optionalAttrs (cfg.repos != { }) { ExecStartPre = "-${makeRepos}"; }
        // optionalAttrs (cfg.mergePasswordFile != null) { LoadCredential = "merge-password:${text cfg.mergePasswordFile}"; }
        // hardening;
      };

      systemd.tmpfiles.rules = [ "d ${cfg.dataDir} 0750 ${cfg.user} ${cfg.group} -" ]
        ++ optionals (cfg.secretsDir != null) secretRules;

      users.users.${cfg.user} = {
        # the forced command: git over ssh and the verbs of `forge`, no shell, no forwarding
        openssh.authorizedKeys.keys = map (key: ''command="${cfg.dataDir}/bin/forge shell",restrict ${key}'') cfg.sshKeys;
      } // optionalAttrs (cfg.user == "forge") {
        isSystemUser = true;
        group = cfg.group;
        home = cfg.dataDir;
        useDefaultShell = true; # sshd runs the forced command with it
      };
      users.groups = optionalAttrs (cfg.group == "forge") { forge = { }; };

      environment.systemPackages = [ cfg.package pkgs.git pkgs.curl ]; # for the command line, and hooks of pushes over ssh
      programs.git = {
        enable = true;
        config.user = builtins.mapAttrs (_: lib.mkDefault) { inherit (cfg.git) name email; };
      };
    }
    (mkIf (cfg.sshKeys != [ ]) { services.openssh.enable = lib.mkDefault true; })
    (mkIf (cfg.domain != null) {
      services.caddy.enable = true;
      services.caddy.virtualHosts.${cfg.domain}.extraConfig = ''
        reverse_proxy ${if anywhere then "127.0.0.1:${toString cfg.port}" else listen} {
          flush_interval -1
        }
      '';
    })
    (mkIf cfg.openFirewall {
      networking.firewall.allowedTCPPorts = if cfg.domain == null then [ cfg.port ] else [ 80 443 ];
    })
  ]);
}
