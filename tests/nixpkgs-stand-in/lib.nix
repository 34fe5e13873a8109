# Stands in for nixpkgs' lib: what our flake, module and templates use of it, and an evaluation of modules that checks the types
# of the options they declare and merges everything else as it comes.
let
  lib = rec {
    inherit (builtins) concatStringsSep filter head isAttrs isBool isFunction isInt isList isString map mapAttrs toString;
    genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
    nameValuePair = name: value: { inherit name value; };
    attrNames = builtins.attrNames;
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    filterAttrs = keep: set: removeAttrs set (filter (name: !keep name set.${name}) (attrNames set));
    concatMapStringsSep = sep: f: list: concatStringsSep sep (map f list);
    concatStrings = concatStringsSep "";
    concatMapStrings = concatMapStringsSep "";
    boolToString = value: if value then "true" else "false";
    unique = builtins.foldl' (kept: one: if builtins.elem one kept then kept else kept ++ [ one ]) [ ];
    optional = yes: value: if yes then [ value ] else [ ];
    optionals = yes: values: if yes then values else [ ];
    optionalAttrs = yes: set: if yes then set else { };
    optionalString = yes: text: if yes then text else "";
    makeBinPath = concatMapStringsSep ":" (package: "${package}/bin");
    getExe = package: "${package}/bin/${package.meta.mainProgram or package.pname}";
    escapeShellArg = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] (toString text)}'";
    hasInfix = part: text: builtins.match ".*${escapeRegex part}.*" text != null;
    escapeRegex = builtins.replaceStrings [ "." "[" "]" ] [ "\\." "\\[" "\\]" ];
    literalExpression = text: { _type = "literalExpression"; inherit text; };
    licenses.mit = { spdxId = "MIT"; };

    mkOption = option: option // { _type = "option"; };
    mkEnableOption = what: mkOption { type = types.bool; default = false; example = true; description = "Whether to enable ${what}."; };
    mkIf = condition: content: { _type = "if"; inherit condition content; };
    mkMerge = contents: { _type = "merge"; inherit contents; };
    mkDefault = content: { _type = "default"; inherit content; };

    types =
      let
        plain = name: check: { inherit name; merge = place: given: if check given then given else wrong place name given; };
        wrong = place: name: given: throw "${place} is ${builtins.toJSON given}, which is no ${name}";
      in rec {
        bool = plain "boolean" isBool;
        str = plain "string" isString;
        lines = str;
        int = plain "integer" isInt;
        port = plain "port" (value: isInt value && value >= 0 && value < 65536);
        ints = {
          positive = plain "positive integer" (value: isInt value && value > 0);
          unsigned = plain "unsigned integer" (value: isInt value && value >= 0);
          between = low: high: plain "integer from ${toString low} to ${toString high}" (value: isInt value && value >= low && value <= high);
        };
        path = plain "absolute path" (value: builtins.substring 0 1 (toString value) == "/");
        package = plain "package" (value: isAttrs value && value ? outPath);
        strMatching = pattern: plain "string that matches ${pattern}" (value: isString value && builtins.match pattern value != null);
        enum = values: plain "one of ${builtins.toJSON values}" (value: builtins.elem value values);
        nullOr = type: { name = "null or ${type.name}"; merge = place: given: if given == null then null else type.merge place given; };
        listOf = type: {
          name = "list of ${type.name}";
          merge = place: given: if isList given then map (type.merge place) given else wrong place "list" given;
        };
        attrsOf = type: {
          name = "attributes of ${type.name}";
          options = type.options or { };
          merge = place: given: if isAttrs given then mapAttrs (name: type.merge "${place}.${name}") given else wrong place "set" given;
        };
        submodule = module: {
          name = "submodule";
          inherit (module) options;
          merge = place: given: settle place module.options given;
        };
      };

    # What `options` declare, with the values `given` for them: each of its type, none that is not declared.
    settle = place: options: given:
      let unknown = filter (name: !(options ? ${name})) (attrNames given);
      in if unknown != [ ] then throw "${place}.${head unknown} is no option" else
        mapAttrs (name: option:
          let here = "${place}.${name}"; in
          if (option._type or "") != "option" then settle here option (given.${name} or { })
          else if given ? ${name} then option.type.merge here given.${name}
          else if option ? default then option.default
          else throw "${here} has no value") options;

    # [ { path, value, weak } … ] of a definition, with the conditions resolved.
    leaves = weak: path: value:
      let type = value._type or ""; in
      if !isAttrs value || value ? outPath then [ { inherit path value weak; } ]
      else if type == "if" then (if value.condition then leaves weak path value.content else [ ])
      else if type == "merge" then builtins.concatMap (leaves weak path) value.contents
      else if type == "default" then leaves true path value.content
      else if value == { } then [ { inherit path value weak; } ]
      else builtins.concatMap (name: leaves weak (path ++ [ name ]) value.${name}) (attrNames value);

    # Several definitions of one value: lists are joined, a default yields.
    join = found:
      let strong = filter (leaf: !leaf.weak) found;
          values = map (leaf: leaf.value) (if strong == [ ] then found else strong);
      in if builtins.all isList values then builtins.concatLists values
         else if builtins.length values == 1 || builtins.all (value: value == head values) values then head values
         else throw "defined more than once: ${builtins.toJSON values}";

    grow = found:
      let
        ends = filter (leaf: leaf.path == [ ]) found;
        real = filter (leaf: leaf.value != { }) ends;
        inner = filter (leaf: leaf.path != [ ]) found;
        step = builtins.groupBy (leaf: head leaf.path) inner;
      in if inner == [ ] then (if real == [ ] then { } else join real)
         else mapAttrs (_: below: grow (map (leaf: leaf // { path = builtins.tail leaf.path; }) below)) step;

    # The names below a definition are seen without asking its conditions, which may depend on what is being defined.
    parts = value:
      let type = value._type or ""; in
      if !isAttrs value || value ? outPath then null
      else if type == "merge"
      then let below = map parts value.contents; in if builtins.elem null below then null else builtins.concatLists below
      else if type == "if" || type == "default"
      then let below = parts value.content; in
        if below == null then null else map (mapAttrs (_: inner: value // { content = inner; })) below
      else [ value ];
    shallow = depth: values:
      let found = parts { _type = "merge"; contents = values; }; in
      if depth == 0 || found == null then grow (builtins.concatMap (leaves false [ ]) values)
      else mapAttrs (_: shallow (depth - 1)) (builtins.zipAttrsWith (_: below: below) found);

    evalModules = { modules, specialArgs ? { } }:
      let
        load = module: if isFunction module then module ({ inherit config lib; } // specialArgs)
                       else if isAttrs module then module else load (import module);
        collect = module: let m = load module; in [ m ] ++ builtins.concatMap collect (m.imports or [ ]);
        loaded = builtins.concatMap collect modules;
        definition = m: if m ? config || m ? options then m.config or { } else removeAttrs m [ "imports" ];
        options = builtins.foldl' (all: m: recursiveUpdate all (m.options or { })) { } loaded;
        raw = shallow 2 (map definition loaded);
        config = raw // mapAttrs (top: below: (raw.${top} or { }) // mapAttrs (name: declared:
          settle "${top}.${name}" declared (raw.${top}.${name} or { })) below) options;
      in { inherit config options; };

    recursiveUpdate = old: new: old // mapAttrs (name: value:
      if isAttrs value && isAttrs (old.${name} or null) && !(value ? _type) then recursiveUpdate old.${name} value else value) new;
  };
in lib
