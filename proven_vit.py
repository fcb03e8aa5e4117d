"""The `vit` command, which says so where another package occupies the import name `vit_pytorch`."""

import sys


def main() -> int:
    """Run the command; see `vit_pytorch.cli.main`."""
    try:
        from vit_pytorch.cli import main as run
    except ModuleNotFoundError as error:
        if error.name != "vit_pytorch.cli":
            raise
        import vit_pytorch

        print(
            f"vit: error: {vit_pytorch.__file__} is of another package, vit-pytorch, which has the same "
            "import name; keep one of the two in an environment: pip uninstall vit-pytorch, then install "
            "proven-vit again",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        # importing takes seconds
        print("vit: error: interrupted", file=sys.stderr)
        return 130
    return run()
