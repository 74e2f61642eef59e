"""A publication as it would be sent, and what stands in it: for the tests of publishing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tt_reasoning.errors import UserError
from tt_reasoning.publishing import Publication, plan_publication


def plan(folder: Path, tmp_path: Path, **options: object) -> Publication:
    work = tmp_path / f"work-{len(list(tmp_path.glob('work-*')))}"
    work.mkdir()
    return plan_publication(folder, work, **{"repo": "user/demo", **options})


def mistake(folder: Path, tmp_path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        plan(folder, tmp_path, **options)
    (line,) = str(caught.value).splitlines()
    return line


def content(planned: Publication, path: str) -> bytes:
    (source,) = (file.source for file in planned.files if file.path == path)
    return source if isinstance(source, bytes) else source.read_bytes()


def paths(planned: Publication) -> list[str]:
    return [file.path for file in planned.files]


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])
