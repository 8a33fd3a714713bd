"""The ``sealane`` command. It uses only :mod:`sealane.client`."""
