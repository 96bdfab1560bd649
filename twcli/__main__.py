from twcli.cli import main

main(prog_name="twcli")
