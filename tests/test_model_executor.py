"""What the executor sends: the same bytes as TFF's own serialization, for any nesting."""

import numpy as np
import pytest
import tensorflow_federated as tff
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_federated.proto.v0 import executor_pb2

from model.executor import write

leaves = st.sampled_from(
    [
        np.float32(0.5),
        np.int64(-3),
        np.zeros(0, np.float32),
        np.arange(6, dtype=np.float32).reshape(2, 3),
    ]
)


def containers(inner: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(inner, max_size=3) | st.dictionaries(
        st.text("abc", min_size=1, max_size=2), inner, max_size=3
    )


structures = st.recursive(leaves, containers)


def type_of(value) -> tff.Type:
    if isinstance(value, list):
        return tff.StructWithPythonType([type_of(one) for one in value], list)
    if isinstance(value, dict):
        return tff.StructWithPythonType([(name, type_of(one)) for name, one in value.items()], dict)
    return tff.TensorType(value.dtype, value.shape)


@given(structures)
def test_a_state_is_sent_as_the_bytes_tff_would_send(value):
    type_spec = tff.FederatedType(type_of(value), tff.SERVER)
    expected, _ = tff.framework.serialize_value(value, type_spec)
    result = executor_pb2.Value()
    write(result, value, type_spec)
    assert result.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )


def test_a_value_of_another_length_or_shape_than_its_type_is_refused():
    pair = tff.FederatedType(tff.StructType([np.float32, np.float32]), tff.SERVER)
    with pytest.raises(TypeError, match="expected a structure of 2 elements, found 1"):
        write(executor_pb2.Value(), [np.float32(1)], pair)
    with pytest.raises(TypeError, match="shape"):
        write(executor_pb2.Value(), [np.float32(1), np.zeros(2, np.float32)], pair)
