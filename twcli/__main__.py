"""`python -m twcli`."""

from twcli.cli.main import main

main(prog_name="twcli")
