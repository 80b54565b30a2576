"""Backends found through entry points, none imported before it is asked for."""

import pytest
from core_support import install, toy_backend

from qspec_core import Backend, BackendError, InstalledBackend, backends, get_backend
from qspec_core.backend import ENTRY_POINT_GROUP

OLD = "qspec.backends.v0"


def test_group_carries_the_contract_version() -> None:
    assert ENTRY_POINT_GROUP == "qspec.backends.v1"


def test_installed_backends_are_listed_by_name_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = install(
        monkeypatch,
        (ENTRY_POINT_GROUP, "toy", toy_backend()),
        (ENTRY_POINT_GROUP, "abacus", None),
        (OLD, "relic", None),
        ("console_scripts", "qspec", None),
    )
    assert backends() == (
        InstalledBackend("abacus", "qspec-abacus", "1.2", "the abacus"),
        InstalledBackend(
            "relic",
            "qspec-relic",
            "1.2",
            "the relic",
            "made for contract v0, this qspec-core has contract v1: upgrade qspec-relic",
        ),
        InstalledBackend("toy", "qspec-toy", "1.2", "the toy"),
    )
    assert loaded == []


def test_backend_is_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = toy_backend()
    loaded = install(monkeypatch, (ENTRY_POINT_GROUP, "toy", toy), (ENTRY_POINT_GROUP, "other", None))
    assert get_backend("toy") is toy
    assert loaded == ["toy"]


def test_unknown_name_lists_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, (ENTRY_POINT_GROUP, "toy", None), (ENTRY_POINT_GROUP, "x86", None), (OLD, "relic", None))
    with pytest.raises(BackendError, match="no backend named 'arm' is installed") as caught:
        get_backend("arm")
    assert caught.value.expected == "one of those installed: toy, x86"
    assert "pip install qspec-arm" in caught.value.remedy
    assert isinstance(caught.value, LookupError)


def test_unknown_name_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert backends() == ()
    with pytest.raises(BackendError) as caught:
        get_backend("x86")
    assert caught.value.expected == "one of those installed: none"


@pytest.mark.parametrize(
    ("group", "advice"),
    [
        (OLD, "made for contract v0, this qspec-core has contract v1: upgrade qspec-relic"),
        ("qspec.backends.v2", "made for contract v2, this qspec-core has contract v1: upgrade qspec-core"),
        ("qspec.backends.v10", "made for contract v10, this qspec-core has contract v1: upgrade qspec-core"),
        ("qspec.backends.beta", "its group 'qspec.backends.beta' names no version of the contract"),
    ],
)
def test_backend_of_another_contract_is_not_imported_and_says_what_to_upgrade(
    monkeypatch: pytest.MonkeyPatch, group: str, advice: str
) -> None:
    loaded = install(monkeypatch, (group, "relic", None))
    with pytest.raises(BackendError, match=r"backend 'relic' of qspec-relic 1\.2 cannot be used") as caught:
        get_backend("relic")
    assert advice in str(caught.value.found)
    assert advice in backends()[0].problem
    assert loaded == []


def test_backend_of_this_contract_is_used_beside_an_older_one_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = toy_backend()
    install(monkeypatch, (OLD, "toy", None), (ENTRY_POINT_GROUP, "toy", toy))
    assert get_backend("toy") is toy


def test_name_that_two_distributions_register(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = install(
        monkeypatch,
        (ENTRY_POINT_GROUP, "toy", toy_backend()),
        (ENTRY_POINT_GROUP, "toy", toy_backend()),
        (ENTRY_POINT_GROUP, "other", toy_backend()),
        distributions=("mine", "theirs", "other"),
    )
    with pytest.raises(BackendError, match="backend 'toy' of mine") as caught:
        get_backend("toy")
    assert caught.value.found == "mine and theirs all register 'toy': uninstall all but one"
    assert [bool(entry.problem) for entry in backends()] == [False, True, True]
    assert loaded == []


@pytest.mark.parametrize(
    "raised",
    [ImportError("onednn is missing"), RuntimeError("no driver"), AttributeError("BACKEND"), SystemExit(3)],
    ids=repr,
)
def test_backend_that_does_not_load(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    install(monkeypatch, (ENTRY_POINT_GROUP, "toy", raised), (ENTRY_POINT_GROUP, "other", other := toy_backend()))
    with pytest.raises(BackendError, match="toy") as caught:
        get_backend("toy")
    assert str(raised) in str(caught.value)
    assert caught.value.__cause__ is raised
    assert get_backend("other") is other


def test_entry_point_that_names_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, (ENTRY_POINT_GROUP, "toy", dict))
    with pytest.raises(BackendError, match=r"is not a qspec_core\.Backend") as caught:
        get_backend("toy")
    assert "qspec-toy" in caught.value.problem


def test_targets() -> None:
    toy = toy_backend()
    assert toy.resolve_target(None) == "any"
    assert toy.resolve_target("fast") == "fast"
    with pytest.raises(BackendError, match="has no target 'slow'") as caught:
        toy.resolve_target("slow")
    assert caught.value.expected == "any, fast"


def test_defaults_of_a_backend() -> None:
    toy = toy_backend()
    least = Backend("least", toy.table, toy.quantizer, toy.lower)
    assert (least.targets, least.package, least.suffix) == (("any",), None, ".pt2")
    assert [mode.value for mode in least.modes] == ["static"]
