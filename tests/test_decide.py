"""The choice of a plan: the least price among what is left open; the price of a plan from its calls."""

from __future__ import annotations

import pytest

from edgesparse.costing.costs import table_for
from edgesparse.costing.forecast import forecast
from edgesparse.graph.ops import Graph
from edgesparse.graph.recognise import recognise
from edgesparse.models import model_path
from edgesparse.passes import SIMPLIFY, load_model, run_passes
from edgesparse.planning.decide import Choice, decide
from edgesparse.planning.place import place
from edgesparse.planning.plan import plan
from edgesparse.target import Target

V4 = Target.parse("x86-64-v4")


@pytest.fixture(scope="module")
def chain() -> Graph:
    """MobileNet-v1: depthwise and 1x1 layers over maps from 112 x 112 down."""
    return recognise(run_passes(load_model(model_path("mobilenet-v1")), SIMPLIFY).model)


def test_the_least_price_is_taken(chain: Graph) -> None:
    found = decide(chain, V4)
    times = [each.time for each in found.considered]
    assert times == sorted(times)
    assert len(times) > 1
    best = found.considered[0]
    assert (found.plan.depth_first, found.plan.band_pixels) == (best.depth_first, best.band_pixels)
    for each in found.considered:
        made = plan(chain, V4, depth_first=each.depth_first, band_pixels=each.band_pixels)
        base = plan(chain, V4)
        prices = forecast(chain, made, place(chain, base, V4), V4, table_for(V4))
        assert sum(layer.time for layer in prices.values()) == pytest.approx(each.time, rel=1e-9)


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("pixels", [7, 300])
def test_what_is_asked_for_is_taken(chain: Graph, order: bool, pixels: int) -> None:
    found = decide(chain, V4, Choice(order, pixels))
    assert found.considered == ()
    assert found.plan == plan(chain, V4, depth_first=order, band_pixels=pixels)
    assert {each.depth_first for each in decide(chain, V4, Choice(depth_first=order)).considered} <= {order}
    assert {each.band_pixels for each in decide(chain, V4, Choice(band_pixels=pixels)).considered} <= {pixels}


def test_caches_decide(chain: Graph) -> None:
    """Every plan costs more where the caches hold less; on small ones the chains of wide maps run depth-first."""

    def times(target: Target) -> dict[tuple[bool, int], float]:
        return {(each.depth_first, each.band_pixels): each.time for each in decide(chain, target).considered}

    small, large = times(Target.parse("x86-64-v4,l1d=16384,l2=131072")), times(Target.parse("x86-64-v4,l2=99999999"))
    assert small.keys() == large.keys()
    assert all(small[key] > large[key] for key in small)
    assert min(small, key=lambda key: small[key])[0]


def test_a_decision_is_told(chain: Graph) -> None:
    found = decide(chain, V4)
    told = found.as_dict()
    assert told["order"] == "depth-first"
    assert told["unit"] == table_for(V4).unit
    assert {"order": told["order"], "band_pixels": told["band_pixels"]} == {
        key: told["considered"][0][key] for key in ("order", "band_pixels")
    }
