"""``python -m diffeq_gen`` and ``diffeq-gen``: the command line, where its packages are installed."""

import importlib.util
import sys

__all__ = ["main"]


def main() -> int:
    """Runs `diffeq_gen.cli.main`, or says in one sentence which packages it lacks."""
    missing = [name for name in ("tyro", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(f"diffeq-gen: {' and '.join(missing)} missing: pip install 'diffeq-gen[demo]'\n")
        return 2
    from diffeq_gen import cli

    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
