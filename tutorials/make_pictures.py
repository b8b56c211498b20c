"""Run tutorials and save their pictures: the Matplotlib figure that a script calls ``figure``.

    python tutorials/make_pictures.py [02 09 ...] [--output tutorials/pictures]

Without numbers, all of them.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

HERE = Path(__file__).parent


def scripts(numbers: list[str]) -> list[Path]:
    """The tutorials with these numbers, or all."""
    found = sorted(HERE.glob("[0-9][0-9]_*.py"))
    unknown = set(numbers) - {path.name[:2] for path in found}
    if unknown:
        raise SystemExit(
            f"there is no tutorial {', '.join(sorted(unknown))}: choose from 01 to {found[-1].name[:2]}"
        )
    return [path for path in found if not numbers or path.name[:2] in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", help="of the tutorials, two digits each")
    parser.add_argument("--output", type=Path, default=HERE / "pictures")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for path in scripts(arguments.numbers):
        figure = runpy.run_path(str(path)).get("figure")
        if figure is not None:
            # without the date the same numbers give the same file
            figure.savefig(arguments.output / f"{path.stem}.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
