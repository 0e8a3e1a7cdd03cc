"""Files and folders of policy: which count, in what order, what they include, and what makes all of it refused."""

from pathlib import Path

import pytest

from crannog.policy import loader
from crannog.policy.loader import DIRECTORIES, load, load_text
from crannog.policy.policy import Policy
from crannog.policy.problems import MAX_PROBLEMS
from tests.unit.policy_world import ETC, RUN, Disk, Files, load_files, problems

Texts = dict[str, str | Exception]


def rule(service: str) -> str:
    return f"{service} * work vault allow\n"


def services(policy: Policy) -> str:
    assert problems(policy) == []
    return " ".join(found.service for found in policy.rules)


def test_files_count_in_the_order_of_the_c_locale() -> None:
    names = ["9.policy", "10_a.policy", "10-a.policy", "10.policy", "a.policy", "10a.policy"]
    policy = load_files({name: rule(name.removesuffix(".policy").replace("-", ".")) for name in names})
    assert services(policy) == "10.a 10 10_a 10a 9 a"


def test_a_file_hides_the_one_of_its_name_in_a_later_folder() -> None:
    policy = load_files(
        {
            f"{ETC}/10-a.policy": rule("hidden"),
            f"{ETC}/20-b.policy": rule("b"),
            f"{RUN}/10-a.policy": rule("shown"),
            f"{RUN}/30-c.policy": rule("c"),
            "/last/20-b.policy": "not even read",
            "/last/25-d.policy": rule("d"),
        },
        RUN,
        ETC,
        "/last",
    )
    assert services(policy) == "shown b d c"
    assert [str(found.origin) for found in policy.rules][:2] == [f"{RUN}/10-a.policy:1", f"{ETC}/20-b.policy:1"]


@pytest.mark.parametrize(
    "name", [".hidden.policy", "README", "10-a.policy~", "a.policy.rpmnew", "10-a.POLICY", "policy"]
)
def test_files_that_are_no_policy(name: str) -> None:
    assert services(load_files({name: "not read", "20.policy": rule("b")})) == "b"


@pytest.mark.parametrize("name", ["Work.policy", "10 a.policy", "10+a.policy", "w\u00f6rk.policy", "a\n.policy"])
def test_a_name_that_programs_sort_differently_denies_everything(name: str) -> None:
    policy = load_files({name: rule("a"), "20.policy": rule("b")})
    assert policy.rules == ()
    assert "the name of a policy file holds only 0-9, a-z" in problems(policy)[0]


def test_all_problems_of_all_files_are_told_and_nothing_is_allowed() -> None:
    policy = load_files({"10.policy": f"{rule('a')}x\n\ny\n", "20.policy": rule("b"), "30.policy": "!include no\nz\n"})
    assert policy.rules == ()
    assert not policy.is_usable
    assert [problem.split(": ")[0].removeprefix(f"{ETC}/") for problem in problems(policy)] == [
        "10.policy:2", "10.policy:4", "30.policy:1", "30.policy:2",
    ]  # fmt: skip


def test_no_folder_at_all() -> None:
    assert problems(load(Files({}), DIRECTORIES)) == [
        "policy: there is no folder with policy; make /etc/qubes/policy.d"
    ]


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), UnicodeDecodeError("utf-8", b"", 0, 1, "x")]
)
def test_a_file_that_cannot_be_read_denies_everything(error: Exception) -> None:
    policy = load_files({"10.policy": error, "20.policy": rule("b")})
    assert policy.rules == ()
    assert f"{ETC}/10.policy cannot be read" in problems(policy)[0]


def test_a_folder_that_cannot_be_listed_denies_everything() -> None:
    class Locked(Files):
        def list_files(self, directory: str) -> list[str] | None:
            raise PermissionError(13, directory)

    assert "cannot be listed" in problems(load(Locked({}), (RUN, ETC)))[0]


def test_a_file_that_is_gone_when_it_is_read() -> None:
    class Racing(Files):
        def read_text(self, path: str) -> str | None:
            return None if path.endswith("20.policy") else super().read_text(path)

    policy = load(Racing({f"{ETC}/10.policy": rule("a"), f"{ETC}/20.policy": rule("b")}), (ETC,))
    assert policy.rules == ()


# Includes


def test_includes_stand_where_they_are_included() -> None:
    policy = load_files(
        {
            "10.policy": f"{rule('a')}!include include/x\n{rule('d')}",
            "include/x": f"{rule('b')}!include include/y\n",
            "include/y": rule("c"),
            "/far/z": rule("z"),
            "20.policy": "!include /far/z\n",
        }
    )
    assert services(policy) == "a b c d z"


def test_relative_paths_are_below_the_folder_of_the_policy_not_of_the_file() -> None:
    policy = load_files(
        {
            f"{RUN}/10.policy": "!include include/x\n",
            f"{RUN}/include/x": rule("run"),
            f"{ETC}/10.policy": rule("hidden"),
            f"{ETC}/20.policy": "!include include/x\n",
            f"{ETC}/include/x": "!include include/y\n",
            f"{ETC}/include/y": rule("etc"),
        }
    )
    assert services(policy) == "run etc"


def test_folders_are_included_as_policy_folders_are() -> None:
    policy = load_files(
        {"10.policy": "!include-dir more\n", "more/1.policy": rule("a"), "more/2.policy": rule("b"), "more/README": "x"}
    )
    assert services(policy) == "a b"
    refused = load_files({"10.policy": "!include-dir more\n", "more/X.policy": rule("b")})
    assert f"{ETC}/more/X.policy: the name of a policy file" in problems(refused)[0]


def test_a_file_for_one_service() -> None:
    policy = load_files(
        {
            "10.policy": "!include-service a.B +x include/s\n!include-service a.C * include/s\n",
            "include/s": "$tag:x $default allow,target=vault\n$include:include/t\n",
            "include/t": "work vault deny\n",
        }
    )
    assert [str(found) for found in policy.rules] == [
        "a.B +x @tag:x @default allow target=vault",
        "a.B +x work vault deny",
        "a.C * @tag:x @default allow target=vault",
        "a.C * work vault deny",
    ]
    assert str(policy.rules[2].origin) == f"{ETC}/include/s:1"


@pytest.mark.parametrize("line", ["!include no", "!include-dir no", "!include-service a.B * no", "!compat-4.0"])
def test_what_is_not_there_denies_everything(line: str) -> None:
    policy = load_files({"10.policy": f"{rule('a')}{line}\n"})
    assert policy.rules == ()
    assert problems(policy)[0].startswith(f"{ETC}/10.policy:2: there is no ")


def test_a_single_text() -> None:
    policy = load_text(f"{rule('a')}!include x\nnonsense\n", "f")
    assert [problem.split(" ")[0] for problem in problems(policy)] == ["f:2:", "f:3:"]
    assert policy.rules == ()
    assert [str(found.origin) for found in load_text(rule("a")).rules] == ["policy:1"]


def test_loops_are_drawn() -> None:
    policy = load_files({"10.policy": "!include x\n", "x": "!include y\n", "y": f"{rule('a')}!include x\n"})
    assert problems(policy) == [f"{ETC}/y:2: the file includes itself: {ETC}/x -> {ETC}/y -> {ETC}/x; remove this line"]
    assert "includes itself" in problems(load_files({"10.policy": "!include-service a.B * s\n", "s": "!include s"}))[0]
    assert "includes itself" in problems(load_files({"10.policy": f"!include-dir {ETC}\n"}))[0]


def test_the_same_file_twice_is_no_loop() -> None:
    assert services(load_files({"10.policy": "!include x\n!include x\n", "x": rule("a")})) == "a a"


def test_depth_has_a_bound() -> None:
    chain: Texts = {f"f{number}": f"!include f{number + 1}\n" for number in range(40)}
    policy = load_files(chain | {"10.policy": "!include f0\n"})
    assert "files include each other more than 16 deep" in problems(policy)[0]
    for length, is_fine in ((14, True), (15, False)):
        short: Texts = {f"f{number}": f"!include f{number + 1}\n" for number in range(length)}
        assert load_files(short | {"10.policy": "!include f0\n", f"f{length}": rule("a")}).is_usable is is_fine


def test_files_that_multiply_end() -> None:
    bomb: Texts = {f"f{number}": f"!include f{number + 1}\n" * 100 for number in range(14)}
    policy = load_files(bomb | {"10.policy": "!include f0\n", "f14": rule("a")})
    assert "more than 5000 files" in problems(policy)[0]


def test_sizes_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_CHARACTERS", 100)
    assert "more than 100 characters" in problems(load_files({"10.policy": "#" * 60, "20.policy": "#" * 60}))[0]
    monkeypatch.setattr(loader, "MAX_RULES", 3)
    assert services(load_files({"10.policy": rule("a") * 3})) == "a a a"
    assert f"{ETC}/10.policy:4: the policy has more than 3 rules" in problems(load_files({"10.policy": rule("a") * 4}))


def test_the_number_of_problems_has_a_bound() -> None:
    policy = load_files({"10.policy": "x\n" * 1000})
    assert len(policy.problems) == MAX_PROBLEMS + 1
    assert any("the rest is not told" in problem for problem in problems(policy))


def test_a_file_is_read_once_however_often_it_is_included() -> None:
    files = Files(
        {f"{ETC}/10.policy": "!include-service a * s\n!include-service b * s\n", f"{ETC}/s": "work vault deny"}
    )
    assert len(load(files, (ETC,)).rules) == 2
    assert files.reads == [f"{ETC}/10.policy", f"{ETC}/s"]


# The files of Qubes 4.0


def test_old_files_for_one_argument_come_first_and_are_final() -> None:
    policy = load_files(
        {
            "35.policy": "!compat-4.0\n",
            "40.policy": "a.B * work vault ask\n",
            "/old/a.B": "$anyvm $anyvm ask\n",
            "/old/a.B+y": "work vault allow\n",
            "/old/a.B+": "dvm $default allow,target=vault\n$include:include/z\n",
            "/old/include/z": "dvm2 $adminvm allow\n",
            "/old/a.A": "work vault deny\n",
        }
    )
    assert [str(found) for found in policy.rules] == [
        "a.A * work vault deny",
        "a.B + dvm @default allow target=vault",
        "a.B + dvm2 @adminvm allow",
        "a.B + * * deny",
        "a.B +y work vault allow",
        "a.B +y * * deny",
        "a.B * @anyvm @anyvm ask",
        "a.B * work vault ask",
    ]
    assert str(policy.rules[5].origin) == "/old/a.B+y"


@pytest.mark.parametrize("name", [".a.B.swp", "a.B~", "a.B.rpmsave", "a B", "x" * 256, "+x"])
def test_old_files_that_are_no_policy(name: str) -> None:
    assert (
        services(load_files({"35.policy": "!compat-4.0\n", f"/old/{name}": "nonsense", "/old/a": "work vault ask"}))
        == "a"
    )


def test_old_files_have_their_problems_told() -> None:
    policy = load_files({"35.policy": "!compat-4.0\n", "/old/a.B": "work vault\n"})
    assert problems(policy)[0].startswith("/old/a.B:1: ")


def test_real_files(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "s").write_text("work vault allow\n")
    (tmp_path / "10-a.policy").write_text("!include-service a.B * include/s\n")
    assert services(load(Disk(), (str(tmp_path / "none"), str(tmp_path)))) == "a.B"
