"""TFF's remote executor, but a round's global state is built in place before it travels."""

import tensorflow_federated as tff
from tensorflow_federated.proto.v0 import executor_pb2
from tensorflow_federated.python.core.impl.executors.remote_executor import RemoteValue


class Executor(tff.framework.RemoteExecutor):
    """A remote executor that builds a message where it stays.

    TFF builds it from the inside out and copies what is inside into each level of its nesting,
    while all cores wait.
    """

    async def create_value(self, value: object, type_spec: tff.Type | None = None) -> RemoteValue:
        """The value in the worker, as TFF's own method leaves it there."""
        if not isinstance(type_spec, tff.FederatedType) or not type_spec.all_equal:
            return await super().create_value(value, type_spec)
        self._check_has_executor_id()
        request = executor_pb2.CreateValueRequest(executor=self._executor_id)
        write(request.value, value, type_spec)
        return RemoteValue(self._stub.create_value(request).value_ref, type_spec, self)


def write(message: executor_pb2.Value, value: object, type_spec: tff.Type) -> None:
    """Write a value into an empty message: the same bytes as `tff.framework.serialize_value` makes
    of it.

    Raises TypeError for a value that is not of the type.
    """
    if isinstance(type_spec, tff.FederatedType) and type_spec.all_equal:
        write(message.federated.value.add(), value, type_spec.member)
        message.federated.type.CopyFrom(tff.types.serialize_type(type_spec).federated)
    elif isinstance(type_spec, tff.StructType):
        values = list(tff.structure.from_container(value))
        if len(values) != len(type_spec):
            raise TypeError(
                f"expected a structure of {len(type_spec)} elements, found {len(values)}"
            )
        message.struct.SetInParent()  # also of no elements
        for (name, kind), one in zip(tff.structure.iter_elements(type_spec), values, strict=True):
            element = message.struct.element.add(name=name or "")
            write(element.value, one, kind)
    else:
        message.CopyFrom(tff.framework.serialize_value(value, type_spec)[0])
