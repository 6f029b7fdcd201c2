"""Federated training: what a client does, how the server averages, and the rounds around them."""

from fedapt.core.callable_package import make_callable

make_callable(__name__)
