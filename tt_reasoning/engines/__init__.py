"""Engines by name. Each is imported when it is opened, so that naming one costs nothing."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

from tt_reasoning.engines.base import Engine
from tt_reasoning.errors import UserError, unknown_name

ENGINES = {
    "vllm": "tt_reasoning.engines.vllm:VllmEngine",
    "tune": "tt_reasoning.engines.tune:TuneEngine",
    "guided": "tt_reasoning.engines.guided:GuidedEngine",
    "openai": "tt_reasoning.engines.openai:OpenAIEngine",
    "ray": "tt_reasoning.engines.ray:RayEngine",
    "scripted": "tt_reasoning.engines.scripted:ScriptedEngine",
}


def open_engine(name: str, model: str, **options: object) -> Engine:
    """The engine of that name with its model loaded. An option that is None is left to the engine.

    Raises:
        UserError: an unknown engine or option, or no such model.

    Example:
        >>> open_engine("vlm", "model")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        tt_reasoning.errors.UserError: unknown engine 'vlm': did you mean 'vllm'? Known: guided, openai, ray, ...
    """
    check_engine(name, model, **options)
    return _engine_class(name)(model, **{option: value for option, value in options.items() if value is not None})


def check_engine(name: str, model: str, **options: object) -> None:
    """Raise the UserErrors of ``open_engine`` without loading the model.

    A model is a Hugging Face folder or a Hub name; a path whose parent exists here is never taken for
    a Hub name. The scripted engine's model is a file, the openai engine's a name at the server. An engine
    with a ``check`` of its own is asked as well.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    _check_model(name, model)
    engine = _engine_class(name)
    known = inspect.signature(engine).parameters.keys() - {"model"}
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in known:
            raise unknown_name(f"option of engine {name}", option, known)
    if hasattr(engine, "check"):
        engine.check(model, **given)


def _engine_class(name: str) -> type[Engine]:
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _check_model(name: str, model: str) -> None:
    if name == "openai":
        return
    path = Path(model)
    if name == "scripted":
        if not path.is_file():
            raise UserError(f"no such file: {model} (the scripted engine's model is a JSON file of answers)")
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{model} has no config.json: not a Hugging Face model folder")
    elif path.exists():
        raise UserError(f"{model} is a file; name a Hugging Face model folder")
    elif model.count("/") != 1 or path.is_absolute() or path.parent.is_dir():
        raise UserError(f"no such model folder: {model} (tools/get_model.py fetches a small one)")
