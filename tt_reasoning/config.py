"""The whole config of a recipe is checked before a weight loads: keys, components, their arguments, types.

A recipe lists its own keys (name -> type) and ends in ``run_recipe(main)``, which turns a user's mistake
into one line and exit status 2.
"""

from __future__ import annotations

import atexit
import difflib
import faulthandler
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torchtune.config._errors import InstantiationError
from torchtune.config._parse import TuneRecipeArgumentParser
from torchtune.config._utils import _get_component_from_path, _merge_yaml_and_cli_args
from torchtune.training import is_distributed
from yaml import YAMLError

from tt_reasoning.errors import UserError, exit_on_mistake, unknown_name


class Component:
    """In a recipe's list of keys: a node with ``_component_``; ``given`` names what the recipe itself passes."""

    def __init__(self, *given: str, optional: bool = False) -> None:
        self.given, self.optional = given, optional


class Section:
    """In a recipe's list of keys: a node that may be absent or null, with keys of its own."""

    def __init__(self, keys: Mapping[str, Any]) -> None:
        self.keys = keys


Keys = Mapping[str, Any]


def check_config(cfg: DictConfig, keys: Keys) -> None:
    """Check a whole config against a recipe's keys.

    ``keys`` maps every key to a type, a union of types with None for a key that may be absent, a nested mapping, a
    ``Section`` (a mapping that may be absent), or a ``Component``. Component names are imported and their arguments
    checked by signature.

    Raises:
        UserError: an unknown key (with the nearest known one), a missing key, a value of another type, a
            component that does not exist or does not take an argument.

    Example:
        >>> check_config(OmegaConf.create({"sed": 1}), {"seed": int})
        Traceback (most recent call last):
        ...
        tt_reasoning.errors.UserError: unknown config key 'sed': did you mean 'seed'? Known: seed
    """
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {str(error).splitlines()[0]}") from None
    _check_mapping(values, keys, "")


def _check_mapping(values: dict[str, Any], keys: Keys, prefix: str) -> None:
    for name in values:
        if name not in keys:
            raise unknown_name("config key", prefix + str(name), [prefix + known for known in keys])
    for name, wanted in keys.items():
        path, value = prefix + name, values.get(name)
        if isinstance(wanted, Component):
            if value is None and wanted.optional:
                continue
            _check_component(value, path, wanted.given)
        elif isinstance(wanted, Section):
            if value is not None:
                _check_mapping(_mapping(value, path), wanted.keys, f"{path}.")
        elif isinstance(wanted, Mapping):
            _check_mapping(_mapping(value, path), wanted, f"{path}.")
        elif not _is_a(value, wanted):
            raise UserError(f"config key {path}: {_found(values, name)}, wanted {_describe(wanted)}")


def _mapping(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"config key {path}: wanted a mapping, found {value!r}")
    return value


def _is_a(value: Any, wanted: Any) -> bool:
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):
        return any(_is_a(value, option) for option in typing.get_args(wanted))
    if typing.get_origin(wanted) is typing.Literal:
        return value in typing.get_args(wanted)
    if wanted is float:
        return type(value) in (int, float)
    if wanted in (None, types.NoneType):
        return value is None
    return type(value) is wanted


def _found(values: dict[str, Any], name: str) -> str:
    return f"found {values[name]!r}" if name in values else "missing"


def _describe(wanted: Any) -> str:
    if typing.get_origin(wanted) is typing.Literal:
        return " or ".join(repr(option) for option in typing.get_args(wanted))
    return getattr(wanted, "__name__", str(wanted))


def _check_component(value: Any, path: str, given: tuple[str, ...]) -> None:
    node = _mapping(value, path)
    if "_component_" not in node:
        raise UserError(f"config key {path}: no _component_ names what to build")
    builder = load_component(node["_component_"], path)
    if not callable(builder):
        raise UserError(f"config key {path}: _component_ '{node['_component_']}' is a module, not what it builds")
    parameters = inspect.signature(builder).parameters
    names = [name for name in node if name != "_component_"]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in names:
        if name in given or (name not in parameters and not takes_any):
            raise unknown_name(f"argument of {path} ({node['_component_']})", name, set(parameters) - set(given))
    for name, parameter in parameters.items():
        optional = parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if not optional and name not in given and name not in names:
            raise UserError(f"config key {path}.{name}: missing, {node['_component_']} needs it")
    for name in names:
        if isinstance(node[name], dict) and "_component_" in node[name]:
            _check_component(node[name], f"{path}.{name}", ())
        elif name in parameters and not _fits(node[name], parameters[name]):
            wanted = type(parameters[name].default).__name__
            raise UserError(f"config key {path}.{name}: found {node[name]!r}, wanted {wanted}")


def _fits(value: Any, parameter: inspect.Parameter) -> bool:
    """Whether a value can stand for a default that is a number, a truth value or a text; others are not judged."""
    default = parameter.default
    if value is None or type(default) not in (bool, int, float, str):
        return True
    numbers = (int, float) if type(default) in (int, float) else (type(default),)
    return type(value) in numbers


def load_component(name: Any, path: str) -> Callable[..., Any]:
    """What a dotted name stands for. Raises UserError with the nearest name of its module."""
    if not isinstance(name, str):
        raise UserError(f"config key {path}: _component_ is {name!r}, wanted a dotted name")
    try:
        return _get_component_from_path(name)
    except (InstantiationError, ValueError):
        module, _, attribute = name.rpartition(".")
        try:
            names = [n for n in dir(_get_component_from_path(module)) if not n.startswith("_")]
        except (InstantiationError, ValueError):
            raise UserError(f"config key {path}: there is no module '{module}' for _component_ '{name}'") from None
        near = difflib.get_close_matches(attribute, names, n=1)
        hint = f"; did you mean '{module}.{near[0]}'?" if near else ""
        raise UserError(f"config key {path}: {module} has no '{attribute}'{hint}") from None


def _parse_arguments(description: str) -> DictConfig:
    """The YAML of ``--config`` with the ``key=value`` overrides of the command line over it."""
    parser = TuneRecipeArgumentParser(description=description)
    try:
        yaml_args, overrides = parser.parse_known_args()
        cfg = _merge_yaml_and_cli_args(yaml_args, overrides)
        for name, node in cfg.items():  # torchtune reads `lr_scheduler=null` as a component without a name
            if isinstance(node, DictConfig) and node.get("_component_", "") is None:
                cfg[name] = None
        return cfg
    except FileNotFoundError as error:
        file = Path(error.filename)
        shown, name = (file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file), file.stem
        raise UserError(
            f"no such config: {shown}; list the packaged ones with: tt-reasoning ls, "
            f"and copy one here with: tt-reasoning cp {name} ."
        ) from None
    except (ValueError, OmegaConfBaseException, YAMLError, OSError) as error:
        raise UserError(f"config: {str(error).splitlines()[0]}") from None


def run_recipe(main: Callable[[DictConfig], None]) -> None:
    """Parse ``--config FILE key=value ...``, call ``main`` and exit: 0, or 2 with one line for a user's mistake.

    torchtune's own parser does the reading, so every override known from ``tune run`` works.
    """
    faulthandler.enable()  # should native code abort, the log says where Python was
    with exit_on_mistake():
        main(_parse_arguments((sys.modules[main.__module__].__doc__ or "").split("\n")[0]))
    if is_distributed():
        _leave()


def _leave() -> NoReturn:
    """End one of several processes whose work is done, without the interpreter's teardown.

    There, once in some hundred runs, a thread of the process group's native code was still alive and aborted the
    process (SIGABRT): torchrun then reported a finished run as failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
