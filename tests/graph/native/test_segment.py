import json

from kernels.native.target.isa import host_isa
from tests.graph.native.nets import image, weights
from tests.graph.oracle import NATIVE, build, calls_of, make, node


def test_kernels_of_each_node_are_shown_where_debugging_asks(monkeypatch, capsys):
    proto = make([node("Conv", ["x", "w"], ["y"], name="conv")], ["y"], [weights("w", 8, 3, 1, 1)], image(1, 3, 5, 5))
    monkeypatch.setenv("EDGEWISE_DEBUG", "1")
    build(proto, backend=NATIVE)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("EDGEWISE_DEBUG", "2")
    executor = build(proto, backend=NATIVE)
    shown = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["kernel"] for line in shown] == [call.kernel.name for call in calls_of(executor)]
    assert {line["event"] for line in shown} == {"kernel"}
    assert any(line["node"] == "conv" and f"__{host_isa().name}_" in line["kernel"] for line in shown)
