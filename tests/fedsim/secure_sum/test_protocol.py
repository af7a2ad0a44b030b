"""Both ends of the protocol together: the exact sum of the survivors, or nothing."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

from fedsim.secure_sum.coordinator import Revealed, unmask
from fedsim.secure_sum.field import Elements, element_type
from fedsim.secure_sum.keys import (
    ProtocolError,
    PublicKeys,
    derive,
    seeded_random,
    stretch,
    system_random,
)
from fedsim.secure_sum.member import Member, mask_key, pairwise_mask
from fedsim.secure_sum.settings import Stage

ROUND = "round 1"
LENGTH = 50


def vectors(num_clients: int, field_bits: int = 32, length: int = LENGTH) -> dict[int, Elements]:
    rng = np.random.default_rng(0)
    high = 2**field_bits - 1
    kind = element_type(field_bits)
    return {n: rng.integers(0, high, length, kind.type, True) for n in range(num_clients)}


@dataclass
class Table:
    """All members of a sum, and what the server has seen of them."""

    members: dict[int, Member]
    threshold: int

    def __post_init__(self) -> None:
        self.keys: dict[int, PublicKeys] = {}
        self.sealed: dict[int, dict[int, bytes]] = {}
        self.masked: dict[int, Elements] = {}
        self.revealed: dict[int, Revealed] = {}

    def advertise(self, gone: Collection[int] = ()) -> None:
        self.keys = {n: m.public_keys for n, m in self.members.items() if n not in gone}

    def share(self, gone: Collection[int] = ()) -> None:
        here = [n for n in self.keys if n not in gone]
        self.sealed = {n: self.members[n].share(self.keys) for n in here}

    def mask(self, given: dict[int, Elements], gone: Collection[int] = ()) -> None:
        here = [n for n in self.sealed if n not in gone]
        self.masked = {n: self.members[n].mask(given[n], list(self.sealed)) for n in here}

    def reveal(self, gone: Collection[int] = ()) -> None:
        for n in self.masked:
            if n not in gone:
                self.revealed[n] = Revealed(*self.ask(n, list(self.masked)))

    def ask(self, n: int, survivors: list[int]) -> tuple[dict[int, bytes], dict[int, bytes]]:
        dealt = {sender: box[n] for sender, box in self.sealed.items() if sender != n}
        return self.members[n].reveal(survivors, dealt)

    def total(self) -> Elements:
        return unmask(
            self.masked,
            keys=self.keys,
            sharing=list(self.sealed),
            revealed=self.revealed,
            threshold=self.threshold,
            context=ROUND,
        )


def table(num_clients: int = 10, threshold: int = 7) -> Table:
    return Table(
        {
            n: Member.join(n, ROUND, threshold, seeded_random(0, "test", n))
            for n in range(num_clients)
        },
        threshold,
    )


def summed(given: dict[int, Elements], gone: Mapping[Stage, Collection[int]]) -> Elements:
    """Run all stages, with clients dropping out at some."""
    ours = table(len(given))
    ours.advertise(gone.get(Stage.KEYS, ()))
    ours.share(gone.get(Stage.SHARES, ()))
    ours.mask(given, gone.get(Stage.MASKED, ()))
    ours.reveal(gone.get(Stage.UNMASK, ()))
    return ours.total()


def test_a_client_that_is_named_twice_does_not_count_for_two() -> None:
    here = table()
    here.advertise()
    here.share()
    member = here.members[3]
    with pytest.raises(ProtocolError, match="named twice"):
        member.mask(vectors(1)[0], [3] * 7)

    here = table()
    here.advertise()
    here.share()
    here.mask(vectors(10))
    with pytest.raises(ProtocolError, match="named twice"):
        here.ask(3, [3] * 7)


@pytest.mark.parametrize("field_bits", [32, 64])
@pytest.mark.parametrize("stage", [None, *Stage])
def test_three_of_ten_may_drop_out_at_any_stage_and_the_sum_of_the_rest_is_exact(
    stage: Stage | None, field_bits: int
) -> None:
    given = vectors(10, field_bits)
    gone = {} if stage is None else {stage: (0, 4, 9)}

    found = summed(given, gone)

    # who drops out at the last stage has sent its vector
    left = [n for n in given if stage in (None, Stage.UNMASK) or n not in (0, 4, 9)]
    wanted = [sum(int(given[n][i]) for n in left) % 2**field_bits for i in range(LENGTH)]
    assert found.dtype.itemsize * 8 == field_bits
    assert found.tolist() == wanted


@pytest.mark.parametrize("stage", list(Stage))
def test_below_the_threshold_nothing_is_revealed(stage: Stage) -> None:
    with pytest.raises(ProtocolError, match="6 clients are left, 7 are needed"):
        summed(vectors(10), {stage: (0, 3, 4, 9)})


def test_drop_outs_add_up_over_the_stages() -> None:
    given = vectors(10)

    found = summed(given, {Stage.KEYS: [0], Stage.SHARES: [1], Stage.MASKED: [2], Stage.UNMASK: []})

    assert np.array_equal(found, sum(given[n] for n in range(3, 10)))
    with pytest.raises(ProtocolError, match="6 clients are left"):
        summed(given, {Stage.KEYS: [0], Stage.SHARES: [1], Stage.MASKED: [2], Stage.UNMASK: [3]})


def masked_vector(given: Elements, seed: int) -> Elements:
    """Return what client 1 of three sends."""
    members = {n: Member.join(n, ROUND, 2, seeded_random(seed, "test", n)) for n in range(3)}
    keys = {n: member.public_keys for n, member in members.items()}
    members[1].share(keys)
    return members[1].mask(given, [0, 1, 2])


@pytest.mark.parametrize("kind", ["<u4", "<u8"])
def test_a_masked_vector_of_zeros_looks_uniform(kind: str) -> None:
    share = masked_vector(np.zeros(20_000, np.dtype(kind)), seed=1)

    bits = np.unpackbits(share.view(np.uint8).reshape(len(share), -1), axis=1).sum(axis=0)
    half = len(share) / 2
    assert stats.chisquare(np.stack([bits, 2 * half - bits]), half).pvalue.min() > 1e-5
    counts = np.bincount(share.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_masked_vector_does_not_depend_on_what_is_masked() -> None:
    given = vectors(1, length=50_000)[0]
    signed = given.view(np.int32) >> 12  # levels of 20 bits

    share = masked_vector(signed.astype(np.uint32), seed=2).view(np.int32)

    correlation = np.corrcoef(signed, share)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(given))  # deviations of independent numbers
    agree = (signed < 0) == (share < 0)
    assert abs(agree.mean() - 0.5) < 2 / np.sqrt(len(given))


def test_the_masks_of_two_rounds_differ_even_where_secrets_repeat() -> None:
    zeros = np.zeros(100, np.uint32)
    shares = []
    for context in ("round 1", "round 2"):
        one, other = (Member.join(n, context, 2, seeded_random(0, "test", n)) for n in (0, 1))
        one.share({0: one.public_keys, 1: other.public_keys})
        shares.append(one.mask(zeros, [0, 1]))

    assert (shares[0] != shares[1]).mean() > 0.9


def test_one_masked_vector_stays_masked_after_the_sum_is_known() -> None:
    given = vectors(10)
    ours = table()
    ours.advertise()
    ours.share()
    ours.mask(given, gone=[2])
    ours.reveal()
    ours.total()

    # the server knows the seeds of survivors now, and the mask key of client 2, and nothing else
    for revealed in ours.revealed.values():
        assert (set(revealed.seeds), set(revealed.mask_keys)) == (set(ours.masked), {2})
    seed, secret = ours.members[0].self_seed, mask_key(ours.members[2].mask_seed, ROUND)
    left = ours.masked[0] - stretch(derive(seed, f"{ROUND}|own"), LENGTH, 32)
    left = left + pairwise_mask(secret, ours.keys[0].mask, 0, 2, ROUND, LENGTH, 32)
    assert (left != given[0]).mean() > 0.9


def test_a_vector_that_arrives_after_its_client_was_given_up_stays_masked() -> None:
    given = vectors(10)
    ours = table()
    ours.advertise()
    ours.share()
    ours.mask(given)
    late = ours.masked.pop(2)
    ours.reveal(gone=[2])

    # the server knows the key of all pairwise masks of client 2 now: its own mask is what is left
    secret = mask_key(ours.members[2].mask_seed, ROUND)
    for other in range(10):
        if other != 2:
            mask = pairwise_mask(secret, ours.keys[other].mask, 2, other, ROUND, LENGTH, 32)
            late = late - mask if other < 2 else late + mask
    assert (late != given[2]).mean() > 0.9
    own = stretch(derive(ours.members[2].self_seed, f"{ROUND}|own"), LENGTH, 32)
    assert np.array_equal(late - own, given[2])


def test_a_client_reveals_its_shares_once() -> None:
    ours = table()
    ours.advertise()
    ours.share()
    ours.mask(vectors(10))
    ours.ask(3, list(range(10)))

    # now the same as if client 0 had dropped out: its seed and its mask key would both be told
    with pytest.raises(ProtocolError, match="each stage comes once, in order"):
        ours.ask(3, list(range(1, 10)))


def test_a_client_masks_one_vector() -> None:
    ours = table()
    ours.advertise()
    ours.share()
    ours.mask(vectors(10))

    with pytest.raises(ProtocolError, match="each stage comes once, in order"):
        ours.members[3].mask(vectors(10)[3], list(range(10)))


Break = Callable[[Table], object]


def no_longer_there(ours: Table) -> object:
    return ours.ask(3, [0, 1, 2, 4, 5, 6, 7])


def never_shared(ours: Table) -> object:
    return ours.ask(3, [*range(10), 11])


def changed_on_the_way(ours: Table) -> object:
    box = bytearray(ours.sealed[0][3])
    box[5] ^= 1
    ours.sealed[0][3] = bytes(box)
    return ours.ask(3, list(range(10)))


def sent_to_another(ours: Table) -> object:
    ours.sealed[0][3] = ours.sealed[0][4]
    return ours.ask(3, list(range(10)))


def left_out(ours: Table) -> object:
    del ours.sealed[0]
    return ours.ask(3, list(range(10)))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (no_longer_there, "client 3 is not among those"),
        (never_shared, "survived that dealt out no shares"),
        (changed_on_the_way, "changed on its way"),
        (sent_to_another, "changed on its way"),
        (left_out, "not those of all who dealt them out"),
    ],
)
def test_a_client_refuses_what_does_not_follow_the_protocol(broken: Break, reason: str) -> None:
    ours = table()
    ours.advertise()
    ours.share()
    ours.mask(vectors(10))

    with pytest.raises(ProtocolError, match=reason):
        broken(ours)


def test_a_client_refuses_keys_that_are_not_its_own_or_come_twice() -> None:
    ours = table()
    ours.advertise()
    others = dict(ours.keys)

    with pytest.raises(ProtocolError, match="another key than this client's"):
        ours.members[3].share({**others, 3: others[4]})
    with pytest.raises(ProtocolError, match="the same key"):
        ours.members[4].share({**others, 3: others[2]})


def test_a_client_refuses_a_key_of_no_use() -> None:
    ours = table()
    ours.advertise()
    zero = replace(ours.keys[0], encryption=bytes(32))

    with pytest.raises(ProtocolError, match="cannot be used"):
        ours.members[3].share({**ours.keys, 0: zero})


def test_wrong_shares_of_a_mask_key_are_noticed() -> None:
    ours = table()
    ours.advertise()
    ours.share()
    ours.mask(vectors(10), gone=[2])
    ours.reveal()
    ours.revealed[0] = replace(ours.revealed[0], mask_keys={2: bytes(16)})

    with pytest.raises(ProtocolError, match="mask key of client 2 do not give it back"):
        ours.total()


def test_fewer_shares_than_the_threshold_do_not_give_a_seed_back() -> None:
    # Shamir's scheme: one share less says nothing, so a sum unmasked with it is noise
    given = vectors(10)
    ours = table()
    ours.advertise()
    ours.share()
    ours.mask(given)
    ours.reveal(gone=[0, 1, 2, 3])
    ours.threshold = 6  # the server takes what it has

    assert (ours.total() != sum(given.values())).mean() > 0.9


def test_a_member_is_the_same_after_it_was_written_down() -> None:
    ours = table()
    ours.advertise()
    for stage in ("joined", "shared", "masked"):
        again = {n: Member.from_json(member.to_json()) for n, member in ours.members.items()}
        assert again == ours.members
        ours.members = again
        if stage == "joined":
            ours.share()
        elif stage == "shared":
            ours.mask(vectors(10))
    ours.reveal()

    assert np.array_equal(ours.total(), sum(vectors(10).values()))


def test_secrets_from_the_seed_repeat_and_those_of_the_system_do_not() -> None:
    def joined(random: Callable[[int], bytes]) -> Member:
        return Member.join(0, ROUND, 2, random)

    assert joined(seeded_random(0, "a")) == joined(seeded_random(0, "a"))
    assert joined(seeded_random(0, "a")) != joined(seeded_random(0, "b"))
    assert joined(system_random) != joined(system_random)
    secrets = joined(system_random)
    assert len({secrets.encryption_secret[:16], secrets.mask_seed, secrets.self_seed}) == 3
