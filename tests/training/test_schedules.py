from soma_agents.training.schedules import FLOOR, learning_rate


def rates(steps):
    return [learning_rate(step, steps=steps, peak=1.0) for step in range(steps)]


def test_the_rate_rises_to_its_peak_and_falls_to_the_floor():
    found = rates(100)

    assert found[0] < found[3] < max(found) == 1.0
    assert found[-1] == FLOOR
    top = found.index(1.0)
    assert found[top:] == sorted(found[top:], reverse=True)


def test_a_run_of_one_step_learns_at_the_peak():
    assert rates(1) == [1.0]
