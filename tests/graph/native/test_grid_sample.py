"""GridSample runs natively between other ops, in blocks."""

from __future__ import annotations

from tests.graph.native.nets import image, normal, weights
from tests.graph.oracle import check_all_shapes, check_native, check_on, constant, in_numpy, kernels, make, node, port


def net(x, grid):
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Tanh", ["g"], ["h"]), node("GridSample", ["a", "h"], ["b"], align_corners=1),
             node("Mul", ["b", "s"], ["c"]), node("Add", ["c", "b"], ["d"]), node("Conv", ["d", "v"], ["y"])]  # fmt: skip
    constants = [weights("w", 33, 5, 1, 1), weights("v", 7, 33, 1, 1), constant("s", normal(33, 1, 1))]
    return make(nodes, ["y"], constants, [port("x", x), port("g", grid)], opset=20)


def test_a_network_around_it_and_what_is_fused_behind(isa):
    x, grid = (2, 5, 6, 7), (2, 4, 5, 2)
    check_native(net(x, grid), {"x": normal(*x), "g": normal(*grid)}, isa, oracle=in_numpy)


def test_nothing_is_converted_around_it(machine):
    x, grid = (2, 5, 6, 7), (2, 4, 5, 2)
    names = kernels(check_on(machine, net(x, grid), {"x": normal(*x), "g": normal(*grid)}, oracle=in_numpy))
    assert ["grid" in name for name in names[:5]] == [False, False, True, False, False]
    assert not any("copy" in name for name in names[:5])
    assert all("copy" in name for name in names[5:])


def test_a_grid_whose_last_dimension_is_its_first(isa):
    nodes = [node("Transpose", ["g"], ["h"], perm=[0, 2, 3, 1]), node("GridSample", ["x", "h"], ["y"])]
    proto = make(nodes, ["y"], [], [*image(2, 3, 4, 5), port("g", [2, 2, 6, 3])], opset=20)
    check_native(proto, {"x": normal(2, 3, 4, 5), "g": normal(2, 2, 6, 3)}, isa, oracle=in_numpy)


def test_one_lowering_serves_images_of_all_sizes(isa):
    proto = make([node("GridSample", ["x", "g"], ["y"])], ["y"], [],
                 [port("x", [1, 3, "h", "w"]), port("g", [1, "a", "b", 2])], opset=20)  # fmt: skip
    sizes = ((4, 5, 6, 7), (9, 3, 20, 5), (12, 30, 3, 4))
    check_all_shapes(proto, [{"x": normal(1, 3, h, w), "g": normal(1, a, b, 2)} for h, w, a, b in sizes], isa)
