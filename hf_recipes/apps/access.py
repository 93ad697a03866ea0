"""Who may connect to a page: whoever sits at this machine, or those with a password."""

import ipaddress
from collections.abc import Mapping


def is_loopback(host: str) -> bool:
    try:
        return host in ("localhost", "localhost.") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_access(auth: str | None, insecure: bool, opened: Mapping[str, bool]) -> None:
    """ValueError for a password of the wrong form, or for the first of `opened` that is true, without one."""
    if auth is not None and not all(auth.partition(":")):
        raise ValueError("--auth: expected user:password")  # the value may be a password: do not show it
    what = next((what for what, is_open in opened.items() if is_open), None)
    if what and not auth and not insecure:
        raise ValueError(f"{what}; add --auth user:password, or --insecure to allow that")
