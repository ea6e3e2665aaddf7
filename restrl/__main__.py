"""`python -m restrl`."""

from restrl.cli import main

if __name__ == "__main__":
    main()
