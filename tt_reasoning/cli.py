"""``tt-reasoning ls`` and ``cp``: what the pack holds, and a copy of it to change.

torchtune's own ``tune ls`` and ``tune cp`` know only torchtune's recipes.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from tt_reasoning.errors import UserError, exit_on_mistake, unknown_name
from tt_reasoning.store import write_atomic

EXAMPLES = """examples:
  tt-reasoning ls                              what there is
  tt-reasoning ls --problems                   the benchmarks that --dataset takes
  tt-reasoning cp 3B_rl my_rl.yaml             a config to change, then: tune run ... --config my_rl.yaml
  tt-reasoning cp grpo_ssa_distributed my_grpo a recipe to change, then: tune run my_grpo --config ...
"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file of the pack that can be listed and copied: kind is recipe, tool or config."""

    kind: str
    path: Path

    @property
    def name(self) -> str:
        """The name without its suffix."""
        return self.path.stem

    def describe(self) -> str:
        """The first line of a module's docstring, or of a config's comments."""
        text = self.path.read_text(encoding="utf-8")
        if self.path.suffix == ".py":
            return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        return next((line.strip("# ") for line in text.splitlines() if line.strip("# ")), "")

    def recipe(self) -> str | None:
        """The recipe that a config's header starts (``tune run ... RECIPE --config``)."""
        found = re.search(r"tune run\b.*?([\w./]+) --config", self.path.read_text(encoding="utf-8"))
        return found[1] if found else None


def find_parts() -> list[Part]:
    """Every recipe, tool and config, from a checkout as from an installed wheel.

    >>> "get_model" in [part.name for part in find_parts() if part.kind == "tool"]
    True
    """
    package = Path(__file__).parent
    if (package / "_configs").is_dir():  # a wheel: recipes lie beside the package, named in its record
        files = importlib.metadata.files("tt-reasoning") or []
        recipes = [Path(file.locate()) for file in files if file.suffix == ".py" and len(file.parts) == 1]
        tools, configs = package / "_tools", package / "_configs"
    else:
        root = package.parent
        recipes, tools, configs = list((root / "recipes").glob("*.py")), root / "tools", root / "configs"
    return (
        [Part(kind="recipe", path=path) for path in sorted(recipes)]
        + [Part(kind="tool", path=path) for path in sorted(tools.glob("*.py"))]
        + [Part(kind="config", path=path) for path in sorted(configs.glob("*.yaml"))]
    )


def list_parts() -> str:
    """The listing: each recipe with the configs that start it, then the tools."""
    parts = find_parts()
    by_recipe: dict[str, list[Part]] = {part.name: [] for part in parts if part.kind == "recipe"}
    for part in parts:
        if part.kind == "config":
            by_recipe.setdefault(part.recipe() or "(no recipe)", []).append(part)
    width = max(map(len, [*by_recipe, *(part.name for part in parts)])) + 4
    about = {part.name: part.describe() for part in parts if part.kind == "recipe"}
    lines = ["recipes, and the configs for them"]
    for recipe, configs in by_recipe.items():
        lines.append(f"  {recipe:{width}}{about.get(recipe, 'a recipe of torchtune')}")
        lines += [f"    {part.name:{width - 2}}{part.describe()}" for part in configs]
    lines.append("tools")
    lines += [f"  {part.name:{width}}{part.describe()}" for part in parts if part.kind == "tool"]
    return "\n".join(lines)


def list_problems() -> str:
    """The benchmarks as a table: what ``--dataset`` and ``--split`` take, and where the rows come from."""
    from tt_reasoning.evaluation import format_table
    from tt_reasoning.problems import SOURCES

    rows = [["name", "kind", "splits", "Hub", "licence", "what it is"]]
    for source in SOURCES.values():
        hub = source.hub or "in this package"
        rows.append([source.name, source.kind, ", ".join(source.splits), hub, source.license, source.description])
    return format_table(rows)


def copy_part(name: str, dest: str, *, force: bool = False) -> str:
    """Copy a recipe, tool or config, named with or without its suffix; returns what was written.

    ``dest`` is a folder (there already, or written with a slash at its end) or a file, whose suffix may be left out.

    Raises:
        UserError: no such part, or the file is there and ``force`` is not given.
    """
    parts = find_parts()
    part = next((part for part in parts if name in (part.name, part.path.name)), None)
    if part is None:
        raise unknown_name("recipe, tool or config", name, {part.name for part in parts})
    target = Path(dest)
    if target.is_dir() or dest.endswith("/"):
        target = target / part.path.name
    elif target.suffix != part.path.suffix:
        target = target.with_name(target.name + part.path.suffix)
    if target.exists() and not force:
        raise UserError(f"{target} is there already; name another file or add --force")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, part.path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error}") from None
    return f"copied {part.kind} {part.name} to {target}"


def main() -> None:
    """The console command ``tt-reasoning``."""
    parser = argparse.ArgumentParser(
        prog="tt-reasoning",
        description="List the recipes, configs and tools of tt-reasoning, and copy one to change it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{ls,cp}")
    ls = commands.add_parser("ls", help="what there is, a line each")
    ls.add_argument("--problems", action="store_true", help="list the benchmarks instead")
    cp = commands.add_parser("cp", help="copy a recipe, config or tool")
    cp.add_argument("name", metavar="NAME", help="its name, with or without suffix")
    cp.add_argument("dest", metavar="DEST", help="a file or a folder")
    cp.add_argument("--force", action="store_true", help="overwrite the file")
    args = parser.parse_args()
    with exit_on_mistake():
        if args.command == "cp":
            print(copy_part(args.name, args.dest, force=args.force))
        else:
            print(list_problems() if args.problems else list_parts())


if __name__ == "__main__":
    main()
