"""The assignment: a right solution gets all points, wrong ones fewer and the sentence that names the thought, and
whatever a submission does, the others are graded."""

import doctest
import functools
import importlib.util
import itertools
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from mbls.constraints import logit_distances, margin_penalty, margin_penalty_gradient
from mbls.statistics import bootstrap_interval

FOLDER = Path(__file__).resolve().parents[1] / "notebooks" / "assignment"


def load(name):
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


checks, grade, runner, skeleton = map(load, ("hidden_checks", "grade", "run_submission", "submission"))

RIGHT = '''
import numpy as np
import torch


def soft_margin_penalty(logits, margin, width):
    x = logits.amax(1, keepdim=True) - logits - margin
    return torch.where(x <= 0, 0, torch.where(x <= width, x**2 / (2 * width), x - width / 2)).mean(1)


def soft_margin_gradient(logits, margin, width):
    top = logits.amax(1, keepdim=True)
    slope = ((top - logits - margin) / width).clamp(0, 1) / logits.shape[1]
    winners = (logits == top).to(logits)
    return winners / winners.sum(1, keepdim=True) * slope.sum(1, keepdim=True) - slope


def classwise_error(count, prob_sum, label_sum, weights=None):
    filled = np.maximum(count, 1)
    gap = np.abs(prob_sum / filled - label_sum / filled)
    return np.average((gap * count).sum(1) / count.sum(1), weights=weights)


def classwise_error_of_voxels(probs, labels, num_bins=15):
    errors = []
    for k in range(probs.shape[1]):
        p, is_k = probs[:, k], labels == k
        bins = np.minimum((p * num_bins).astype(int), num_bins - 1)
        gaps = [abs(p[bins == b].mean() - is_k[bins == b].mean()) for b in np.unique(bins)]
        errors.append(np.average(gaps, weights=np.unique(bins, return_counts=True)[1]))
    return float(np.mean(errors))


def interval(figures_a, figures_b, patients, resamples=2000, seed=0):
    difference, patients = figures_a - figures_b, np.array(patients)
    of_each = np.array([difference[patients == name].mean() for name in np.unique(patients)])
    drawn = np.random.default_rng(seed).choice(of_each, (resamples, len(of_each)))
    low, high = np.percentile(drawn.mean(1), [2.5, 97.5])
    return low, high


def decide(figures_a, figures_b, patients, better):
    low, high = interval(figures_a, figures_b, patients)
    if low <= 0 <= high:
        return "undecided"
    return "A" if (high < 0) == (better == "low") else "B"


ANSWER = """I would use MbLS with m = 5."""
'''


questions = functools.cache(checks.questions)


def functions(source):
    module = types.ModuleType("submission")
    exec(source, vars(module))
    return module


def graded(seed=0, **wrong):
    """The marks of the right solution with some functions in other's place, without a process."""
    module = functions(RIGHT)
    vars(module).update(wrong)
    calls = questions(seed)
    answers = []
    for call in calls:
        asked = grade.as_json(call)
        told = runner.answer(module, asked)
        answers.append(grade.answer_of(told))
    return {mark.item.split()[0]: mark for mark in checks.marks(calls, answers)}


def points(marks):
    return sum(mark.points for mark in marks.values())


@pytest.mark.parametrize("seed", range(5))
def test_the_right_solution_has_all_points(seed):
    marks = graded(seed)
    assert [mark.item for mark in marks.values() if mark.points != mark.most] == []
    assert points(marks) == 16
    assert all(repr(mark.feedback).startswith("✓ Yes") for mark in marks.values())


def test_points_add_up_to_twenty_and_the_rubric_has_each_item():
    marks = graded()
    assert sum(mark.most for mark in marks.values()) + grade.WRITTEN_POINTS == 20
    rows = re.findall(r"^\| (\d\.\d) [^|]*\| (\d) \|", (FOLDER / "RUBRIC.md").read_text(), re.MULTILINE)
    assert rows == [(item, f"{mark.most}") for item, mark in marks.items()]


def test_the_examples_hold_for_the_right_solution():
    right = vars(functions(RIGHT))
    tests = [test for test in doctest.DocTestFinder().find(skeleton, globs=dict(right)) if test.examples]
    assert len(tests) == 5
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


def test_the_expected_gradient_agrees_with_differences():
    calls = [call for call in questions(0) if call.function == checks.GRADIENT]
    calls = [call for call in calls if "exactly" not in call.what and "equal" not in call.what]
    assert len(calls) == 7
    for call in calls:
        logits, margin, width = call.arguments
        assert torch.autograd.gradcheck(
            lambda values, m=margin, w=width: checks.right_penalty(values, m, w), logits.clone().requires_grad_()
        )
        for place in itertools.islice(np.ndindex(logits.shape), 0, None, 7):
            step = torch.zeros_like(logits)
            step[place] = 1e-6
            up, down = (checks.right_penalty(logits + sign * step, margin, width).sum() for sign in (1, -1))
            assert float((up - down) / 2e-6) == pytest.approx(float(call.expected[place]), abs=1e-5)


def test_the_hidden_batch_has_all_three_pieces_and_no_kink():
    for seed in range(5):
        logits, margin, width = questions(seed)[0].arguments
        x = logit_distances(logits) - margin
        assert min((x < 0).sum(), ((x > 0) & (x < width)).sum(), (x > width).sum()) > 20
        assert (x.abs() > 1e-6).all()


@pytest.mark.parametrize("seed", range(5))
def test_known_mistakes_can_be_told_apart(seed):
    """Two mistakes with one result would be given the wrong sentence."""
    calls = {(call.function, call.what): call for call in questions(seed)}
    batch = {name: calls[name, "a batch"] for name in (checks.PENALTY, checks.GRADIENT)}
    for name, mistakes in ((checks.PENALTY, checks.WRONG_PENALTIES), (checks.GRADIENT, checks.WRONG_GRADIENTS)):
        values = [batch[name].expected, *(mistake.value(*batch[name].arguments) for mistake in mistakes)]
        assert all(value.shape == values[0].shape for value in values)
        assert not any(torch.allclose(a, b, atol=1e-4) for a, b in itertools.combinations(values, 2))
    full = calls[checks.SUMS, "full bins"].arguments
    assert full[0].min() > 0
    assert calls[checks.SUMS, "empty bins"].arguments[0].min() == 0
    figures = [checks.right_errors(*full).mean(), *(errors.mean() for _, errors in checks.wrong_errors(*full))]
    assert min(np.diff(sorted(figures))) > 1e-4
    errors = checks.repairs(*calls[checks.VOXELS, "voxels"].arguments)
    for faults, error in errors:
        first = next(found for found, other in errors if abs(other - error) < 1e-7)
        assert checks.sentences(first) == checks.sentences(faults)
    for what in ("two cases each", "cases of different number"):
        a, b, patients, *_ = calls[checks.INTERVAL, what].arguments
        right = calls[checks.INTERVAL, what].expected
        for mistake in checks.wrong_intervals(checks.Cases(a, b, np.array(patients))):
            alike = "more cases" in mistake.thought and what == "two cases each"
            assert alike or (mistake.value - right).abs().max() > 1.2 * checks.SLACK * (right[1] - right[0]) / 2


def penalty(h):
    return lambda logits, m, w: h(logit_distances(logits) - m, w).mean(1)


def huber(x, w):
    return F.huber_loss(F.relu(x), torch.zeros_like(x), reduction="none", delta=w)


def one_winner(logits, m, w):
    slope = ((logit_distances(logits) - m) / w).clamp(0, 1) / logits.shape[1]
    return F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1) * slope.sum(1, keepdim=True) - slope


def by_autograd(logits, m, w):
    logits = logits.clone().requires_grad_()
    functions(RIGHT).soft_margin_penalty(logits, m, w).sum().backward()
    return logits.grad


def gap(count, prob_sum, label_sum):
    with np.errstate(all="ignore"):
        return np.abs(prob_sum / count - label_sum / count)


def repaired(edges=True, mean=True, voxels=True):
    """The skeleton's function with some of its faults repaired."""
    source = (FOLDER / "submission.py").read_text()
    if edges:
        source = source.replace("(p < high)", "(p < high + (high == 1))")
    if mean:
        source = source.replace("gaps.append(", "gaps.append(inside.mean() * ")
        source = source.replace("errors.append(np.mean(gaps))", "errors.append(sum(gaps))")
    if voxels:
        source = source.replace("probs[foreground], labels[foreground]", "probs, labels")
    return functions(source).classwise_error_of_voxels


def over(values, resamples=2000, statistic=None):
    return bootstrap_interval(values, statistic, resamples)


def of_patients(values, patients):
    return checks.mean_of_patients(values, np.array(patients))


def unpaired(a, b, patients, resamples=2000, seed=0):
    drawn = [np.random.default_rng(s).choice(of_patients(v, patients), (resamples, 20)) for s, v in ((1, a), (2, b))]
    return tuple(np.percentile(drawn[0].mean(1) - drawn[1].mean(1), [2.5, 97.5]))


def pooled(a, b, patients, resamples=2000, seed=0):
    patients, difference = np.array(patients), a - b
    parts = [difference[patients == name] for name in np.unique(patients)]
    random = np.random.default_rng(seed)
    means = [np.concatenate([parts[i] for i in random.integers(20, size=20)]).mean() for _ in range(resamples)]
    return tuple(np.percentile(means, [2.5, 97.5]))


def decision(ends, low="A", high="B"):
    return "undecided" if ends[0] <= 0 <= ends[1] else low if ends[1] < 0 else high


PENALTIES = [
    (lambda x, m, w: penalty(huber)(x, m, w) * x.shape[1] / w, "factor K", 2),
    (penalty(lambda x, w: torch.where(x > w, x, huber(x, w) / w)), "do not meet", 2),
    (penalty(huber), "w times", 2),
    (lambda logits, m, w: margin_penalty(logits, m), "plain hinge", 0),
    (penalty(lambda x, w: F.relu(x) ** 2 / (2 * w)), "for ever", 0),
    (penalty(lambda x, w: huber(x.abs(), w) / w), "equality", 0),
    (lambda logits, m, w: penalty(huber)(logits, m, w).mean(), "shape ()", 0),
    (lambda logits, m, w: F.relu(logits - logits.amax(1, keepdim=True) - m).mean(1), "0 everywhere", 0),
]


@pytest.mark.parametrize(("wrong", "thought", "left"), PENALTIES)
def test_wrong_penalties(wrong, thought, left):
    marks = graded(soft_margin_penalty=wrong)
    assert thought in marks["1.1"].feedback.message
    assert marks["1.1"].points + marks["1.2"].points == left
    assert marks["2.1"].points == 1


def test_a_penalty_with_one_mistake_is_followed_through():
    def summed(logits, m, w):
        return logits.shape[1] * penalty(huber)(logits, m, w) / w

    marks = graded(
        soft_margin_penalty=summed,
        soft_margin_gradient=lambda x, m, w: x.shape[1] * functions(RIGHT).soft_margin_gradient(x, m, w),
    )
    assert [marks[f"1.{n}"].points for n in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert "of your penalty" in marks["1.3"].feedback.message


def test_the_hinge_of_the_package_is_not_the_answer():
    marks = graded(
        soft_margin_penalty=lambda x, m, w: margin_penalty(x, m),
        soft_margin_gradient=lambda x, m, w: margin_penalty_gradient(x, m),
    )
    assert [marks[f"1.{n}"].points for n in (1, 2, 3, 4)] == [0, 0, 0, 0]
    assert "jumps" in marks["1.3"].feedback.message


GRADIENTS = [
    ("1.3", lambda x, m, w: -functions(RIGHT).soft_margin_gradient(x, m, w), "sign"),
    ("1.3", lambda x, m, w: functions(RIGHT).soft_margin_gradient(x, m, w).clamp(max=0), "winner's part"),
    ("1.3", lambda x, m, w: functions(RIGHT).soft_margin_gradient(x, m, w) * x.shape[1], "factor 1/K"),
    ("1.3", lambda x, m, w: margin_penalty_gradient(x, m), "jumps"),
    ("1.3", by_autograd, "by hand"),
    ("1.4", one_winner, "two equal largest logits"),
    ("1.4", lambda x, m, w: functions(RIGHT).soft_margin_gradient(x.float(), m, w).double() * (x < 200), "300 added"),
]


@pytest.mark.parametrize(("item", "wrong", "thought"), GRADIENTS)
def test_wrong_gradients(item, wrong, thought):
    marks = graded(soft_margin_gradient=wrong)
    assert thought in marks[item].feedback.message
    assert marks[item].points < marks[item].most
    assert marks["1.1"].points == 2


def errors_of(count, prob_sum, label_sum):
    return np.nansum(gap(count, prob_sum, label_sum) * count, 1) / count.sum(1)


def averaged(errors, weights):
    return errors.mean() if weights is None else np.average(errors, weights=weights)


SUMS = [
    ("2.1", lambda n, p, y, w=None: averaged(np.nanmean(gap(n, p, y), 1), w), "ACE", 2),
    ("2.1", lambda n, p, y, w=None: averaged(np.abs((p - y).sum(1)) / n.sum(1), w), "too late", 2),
    ("2.1", lambda n, p, y, w=None: averaged(np.nanmax(gap(n, p, y), 1), w), "MCE", 2),
    ("2.2", lambda n, p, y, w=None: averaged((gap(n, p, y) * n).sum(1) / n.sum(1), w), "0 / 0", 2),
    ("2.3", lambda n, p, y, w=None: errors_of(n, p, y).mean(), "change nothing", 2),
    ("2.3", lambda n, p, y, w=1.0: np.mean(w * errors_of(n, p, y)), "divided by K", 2),
    ("2.3", lambda n, p, y, w=0.25: np.sum(w * errors_of(n, p, y)), "their unit", 2),
]


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize(("item", "wrong", "thought", "left"), SUMS)
def test_wrong_errors_from_sums_cost_one_point(item, wrong, thought, left):
    marks = graded(classwise_error=wrong)
    assert thought in marks[item].feedback.message
    assert sum(marks[f"2.{n}"].points for n in (1, 2, 3)) == left


@pytest.mark.parametrize("faults", list(itertools.product((True, False), repeat=3)))
def test_each_repaired_fault_is_a_point(faults):
    marks = graded(classwise_error_of_voxels=repaired(*faults))
    assert [marks[f"2.{n}"].points for n in (4, 5, 6)] == list(map(int, faults))
    words = ("exactly 1", "count the same", "by their label")
    for number, right, word in zip((4, 5, 6), faults, words, strict=True):
        assert right or word in marks[f"2.{number}"].feedback.message


def test_a_repair_that_brings_a_new_fault():
    def open_at_the_left(probs, labels, num_bins):
        return checks.with_faults(probs, labels, num_bins, "no 0", "shares", ("all", "all"))

    def foreign(probs, labels, num_bins):
        return 0.5

    assert "left end" in graded(classwise_error_of_voxels=open_at_the_left)["2.4"].feedback.message
    assert "new fault" in graded(classwise_error_of_voxels=foreign)["2.5"].feedback.message


INTERVALS = [
    (lambda a, b, patients, n, seed: over(a - b, n), "independent", 1, 0),
    (lambda a, b, patients, n, seed: over(of_patients(b - a, patients), n), "sign", 1, 0),
    (unpaired, "drawn apart", 1, 0),
    (
        lambda a, b, patients, n, seed: tuple(np.percentile(of_patients(a - b, patients), [2.5, 97.5])),
        "how far patients lie apart",
        0,
        0,
    ),
    (lambda a, b, patients, n, seed: over((a - b).reshape(-1, 2).mean(1), n), "any order", 1, 0),
    (lambda a, b, patients, n, seed: (0.1, -0.1), "lower end", 0, 0),
    (lambda a, b, patients, n, seed: 0.1, "lower and the upper end", 0, 0),
]


@pytest.mark.parametrize(("wrong", "thought", "first", "second"), INTERVALS)
def test_wrong_intervals(wrong, thought, first, second):
    marks = graded(interval=wrong)
    assert thought in marks["3.1"].feedback.message
    assert (marks["3.1"].points, marks["3.2"].points) == (first, second)


def test_patients_with_more_cases_that_count_more():
    marks = graded(interval=pooled)
    assert (marks["3.1"].points, marks["3.2"].points) == (2, 0)
    assert "more cases count more" in marks["3.2"].feedback.message


@pytest.mark.parametrize("seed", range(5))
def test_chance_of_the_student_s_own_draws_costs_nothing(seed):
    def other_draws(a, b, patients, resamples, _):
        return functions(RIGHT).interval(a, b, patients, resamples, seed + 100)

    marks = graded(seed, interval=other_draws)
    assert (marks["3.1"].points, marks["3.2"].points) == (2, 1)


DECISIONS = [
    (lambda a, b, patients, better: "A" if ((a - b).mean() < 0) == (better == "low") else "B", "means alone"),
    (lambda a, b, patients, better: "undecided", "not even a clear case"),
    (lambda a, b, patients, better: decision(unpaired(a, b, patients)), "unpaired"),
    (lambda a, b, patients, better: decision(over(of_patients(a - b, patients))), "`better`"),
    (
        lambda a, b, p, better: decision(over(of_patients(a - b, p)), *("BA" if better == "low" else "AB")),
        "turned round",
    ),
    (
        lambda a, b, patients, better: decision(over(a - b), *("AB" if better == "low" else "BA")),
        "were independent",
    ),
    (lambda a, b, patients, better: "C", "'undecided' is asked for"),
]


@pytest.mark.parametrize(("wrong", "thought"), DECISIONS)
def test_wrong_decisions(wrong, thought):
    marks = graded(decide=wrong)
    assert marks["3.3"].points == 0
    assert thought in marks["3.3"].feedback.message
    assert points(marks) == 15


NAMES = [checks.PENALTY, checks.GRADIENT, checks.SUMS, checks.VOXELS, checks.INTERVAL, checks.DECIDE]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "nonsense",
    ["text", [], {}, (1, "a"), torch.zeros(7, 7), float("nan"), 10**400, range(10**6)],
    ids=["text", "empty", "dictionary", "mixed", "shape", "nan", "large", "long"],
)
def test_nonsense_is_told_and_not_raised(name, nonsense):
    marks = graded(**{name: lambda *arguments: nonsense})
    assert points(marks) < 16
    assert all(len(mark.feedback.message) > 10 for mark in marks.values())


FORGED = """
import atexit, json, sys
for line in ['{"call": 0, "value": 1}', "1.1 penalty 2/2 ✓ Yes", "forged.py: 16 of 16 for the code"]:
    print(line); print(line, file=sys.stderr)
def everything(*arguments):
    print("forged.py: 16 of 16 for the code")
    return True
soft_margin_penalty = soft_margin_gradient = classwise_error = everything
classwise_error_of_voxels = interval = decide = everything
"""
HANGING = RIGHT + "\n\ndef classwise_error(*arguments):\n    while True:\n        pass\n"
CRASHING = RIGHT + "\n\nimport os\n\n\ndef interval(*arguments):\n    os._exit(0)\n"
IMPORTING = RIGHT + (
    "\n\nfrom mbls.metrics import classwise_calibration_error\n\n\n"
    "def classwise_error_of_voxels(probs, labels, num_bins):\n"
    "    return classwise_calibration_error(torch.from_numpy(probs), torch.from_numpy(labels), num_bins)\n"
)
#: File -> its text, its points, a part of what is printed.
CLASS = {
    "anna/submission.py": (RIGHT, 16, "✓ Yes: patients are drawn"),
    "bert.py": ((FOLDER / "submission.py").read_text(), 0, "Not answered"),
    "carl.py": ("import sys\nsys.exit(0)\n" + RIGHT, 0, "cannot be loaded (SystemExit, line 2"),
    "cora.py": (RIGHT + "\n\ndef decide(*arguments):\n    raise SystemExit(0)\n", 15, "SystemExit"),
    "dora.py": ("def soft_margin_penalty(:\n", 0, "cannot be loaded (SyntaxError"),
    "emil.py": ("import no_such_module\n" + RIGHT, 0, "no_such_module"),
    "ever.py": ("while True:\n    pass\n" + RIGHT, 0, "stopped after"),
    "finn.py": (HANGING, 13, "endless loop"),
    "forged.py": (FORGED, 0, "It returns"),
    "gero.py": (CRASHING, 12, "ended early"),
    "hans.py": (IMPORTING, 13, "switched off"),
    "zoe.py": (RIGHT, 16, "✓ Yes"),
}


@pytest.mark.parametrize(
    "names",
    [
        ["anna/submission.py", "carl.py", "forged.py"],
        pytest.param(list(CLASS), marks=pytest.mark.slow),  # two endless loops, up to the limit
    ],
    ids=["three", "all"],
)
def test_whatever_a_submission_does_the_others_are_graded(tmp_path, monkeypatch, capsys, names):
    folder, out = tmp_path / "class", tmp_path / "grades.csv"
    handed_in = {name: CLASS[name] for name in names}
    for name, (source, _, _) in handed_in.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    monkeypatch.setattr(sys, "argv", ["grade.py", str(folder), "--out", str(out), "--seconds", "25"])
    grade.main()
    table = pd.read_csv(out).set_index("submission")
    assert list(table.index) == names
    parts = re.split(r"\n(?=\S+: [\d.]+ of 16)", capsys.readouterr().out)[1:]
    assert len(parts) == len(names)
    for part, (name, (_, points, told)) in zip(parts, handed_in.items(), strict=True):
        assert table.loc[name, "code"] == points, part
        assert part.startswith(f"{name}: {points} of 16 for the code\n")
        assert told in part
        assert told in table.loc[name, "feedback"]
    assert sorted(path.name for path in folder.rglob("*") if path.suffix != ".py") == ["anna"]  # nothing is left behind


def test_what_cannot_be_graded_is_said(tmp_path, monkeypatch, capsys):
    for wrong, told in ((tmp_path / "none.py", "none.py"), (tmp_path, "expected a submission")):
        monkeypatch.setattr(sys, "argv", ["grade.py", str(wrong)])
        with pytest.raises(SystemExit, match="2"):
            grade.main()
        assert told in capsys.readouterr().err
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "submission.py").touch()
    with pytest.raises(ValueError, match="a second time"):
        grade.submissions([tmp_path / "a", tmp_path / "b"])


def test_the_text_is_read_without_running_it(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('raise SystemExit\nANSWER = """\n=cmd() two words\n"""\n')
    text = grade.text_of(file)
    assert text == "=cmd() two words"
    assert grade.row("a", [], text)["text"] == "'=cmd() two words"
    assert grade.row("a", [], text)["words"] == 3
    file.write_text("def (")
    assert grade.text_of(file) == ""


def test_lines_that_students_code_wrote_harm_nothing(tmp_path):
    file = tmp_path / "answers.jsonl"
    lines = ['{"call": 0, "value": 1.5}', '{"call": 0, "value": 2}', "[" * 100_000, "{", '"x"', '{"call": "0"}']
    lines += ['{"call": 99, "value": 1}', '{"call": true, "value": 1}', '{"call": 1, "value": [[1], 2]}', "\0"]
    file.write_text("\n".join(lines))
    found = grade.read_answers(file, calls=5)
    assert list(found) == [0]
    assert float(found[0].value) == 1.5
    assert grade.read_answers(tmp_path / "none", calls=5) == {}


def test_the_table_of_the_readme_is_the_recorded_one():
    text = (FOLDER / "README.md").read_text()
    (code,) = re.findall(r'python -c "\n(.*?)"\n', text, re.DOTALL)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    rows = [line.strip("| ").split(" | ") for line in shown.strip().splitlines()]
    written = [line.strip("| ").split(" | ") for line in re.findall(r"^\| .*±.* \|$", text, re.MULTILINE)]
    assert [cell for row in written for cell in row] == [cell for row in rows for cell in row]
    assert len(written) == 4


def test_the_site_leaves_out_what_is_the_teachers(monkeypatch):
    pytest.importorskip("sphinx", reason="Sphinx is not installed (pip install -e '.[site]')")
    monkeypatch.syspath_prepend(FOLDER.parents[1] / "site")  # it imports its neighbour
    specification = importlib.util.spec_from_file_location("build_site", FOLDER.parents[1] / "site" / "build.py")
    build = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(build)
    staged = {path for pattern in build.PAGES for path in build.ROOT.glob(pattern)}
    assert {path.name for path in staged if path.parent == FOLDER} == {"README.md", "submission.py"}
