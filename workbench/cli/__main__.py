"""`python -m workbench.cli`: the command without an installation."""

from workbench.cli import main

if __name__ == "__main__":
    main()
