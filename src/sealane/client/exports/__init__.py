"""A model in the memory of the process that trained it, written as files that can be served without its code.

No framework is imported here: which one an object belongs to is told by what the process has imported already. The
modules of this package import it again only once an object of it was handed over.
"""

from __future__ import annotations

from sealane.client.exports.export import export, framework_of
from sealane.client.exports.written import Exported

__all__ = ["Exported", "export", "framework_of"]
