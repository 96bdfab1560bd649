"""`twcli` and `python -m twcli`."""

import signal


def run() -> None:
    """The command line. Ctrl-C before it takes over, while it is imported, is no traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it may be ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from twcli.cli.main import main

    main(prog_name="twcli")


if __name__ == "__main__":
    run()
