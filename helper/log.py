"""The log of a leader: which heads of it a helper signs.

Reads no clock and no store. Of each log only the size and the root of the newest head that was
signed are remembered; what is signed next extends that, so no two heads ever fork. A leader whose
log was followed by another goes on with that alone: else it had two, and could show each device
one.
"""

from collections.abc import Callable, Iterable

from device_runtime import chain, log_wire, merkle
from device_runtime.chain import Certificate
from device_runtime.helper_wire import HeadAsked, HelperProblem, Refusal
from device_runtime.log_wire import Head
from device_runtime.wire import Signed


def why_not(
    asked: HeadAsked,
    size: int,
    root: str,
    newest_log: Callable[[str], str],
    certificates: Callable[[str], Iterable[Signed]],
) -> Head | HelperProblem | None:
    """The head that may be signed, or why it may not; None if its proof begins at another size than
    the one that was signed last, which is `size` with `root`. `newest_log` gives the key of
    the log that a leader began last, `certificates` those of its tasks: one of them must name the
    log's key.
    """
    key = asked.head.signer
    head = log_wire.head_in(asked.head, key)
    if isinstance(head, str):
        return HelperProblem(Refusal.MALFORMED, head)
    if not any(_names(each, key, head.log) for each in certificates(head.log)):
        return HelperProblem(
            Refusal.FOREIGN_POLICY, f"head: no certificate of a task here names log key {key[:16]}"
        )
    newest = newest_log(head.log)
    if size and newest != key:
        return HelperProblem(
            Refusal.FORK,
            f"head: the log of key {key[:16]} was followed by that of key {newest[:16]}, which "
            "goes on alone",
        )
    if head.size < size or (head.size == size and head.root != root):
        return _fork(head, size, root)
    if head.size == size:
        return head
    if asked.seen != size:
        return None
    before = size, bytes.fromhex(root) if size else merkle.EMPTY
    after = head.size, bytes.fromhex(head.root)
    if not merkle.extends(before, after, log_wire.from_path(asked.consistency)):
        return _fork(head, size, root)
    return head


def _names(signed: Signed, key: str, server: str) -> bool:
    certificate = chain.read_certificate(signed, frozenset({signed.signer}))
    return isinstance(certificate, Certificate) and (certificate.log_key, certificate.server) == (
        key,
        server,
    )


def _fork(head: Head, size: int, root: str) -> HelperProblem:
    return HelperProblem(
        Refusal.FORK,
        f"head: expected one that extends the {size:,} entries that were signed ({root[:16]}), "
        f"found {head.size:,} entries ({head.root[:16]}) and no proof that it does",
    )
