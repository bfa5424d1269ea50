"""The check that counts the machine instructions of CUDA fills: what it counts and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are not installed

from benchmarks.instructions import sass  # noqa: E402

ARGUMENTS = "EEvNS_9ConstantsINT_4RealEEENS_11KeyScheduleEPKmNS0_8DenseRunEPT0_"
# A loop of ten instructions with two float32 stores; its hot path skips two of the ten. Then a loop with
# fewer stores, and a function that is not one of these kernels.
LISTING = """
	code for sm_90
		Function : _ZN9paraminit4cuda12dense_kernelINS0_8UniformFILb0EEEfLb0ARGUMENTS
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   S2R R0, SR_TID.X ;                       /* 0x0000000000007919 */
                                                                            /* 0x000e620000002100 */
        /*0010*/                   IMAD.WIDE.U32 R4, R0, -0x2daee0ad, RZ ;  /* 0xd2511f5300047825 */
        /*0020*/                   LOP3.LUT R6, R5, UR12, RZ, 0x3c, !PT ;   /* 0x0000000c05067c12 */
        /*0030*/                   FSETP.GT.AND P0, PT, R6, UR5, PT ;       /* 0x0000000506007c0b */
        /*0040*/              @!P0 BRA 0x70 ;                               /* 0x0000000000088947 */
        /*0050*/                   FMNMX R6, R6, UR6, PT ;                  /* 0x0000000606067c09 */
        /*0060*/                   FMNMX R6, R6, UR7, !PT ;                 /* 0x0000000706067c09 */
        /*0070*/                   STG.E.128 desc[UR8][R8.64], R4 ;         /* 0x0000000408007986 */
        /*0080*/                   STG.E.128 desc[UR8][R8.64+0x1000], R4 ;  /* 0x0010000408007986 */
        /*0090*/                   ISETP.NE.AND P0, PT, R0, R3, PT ;        /* 0x000000030000720c */
        /*00a0*/               @P0 BRA 0x10 ;                               /* 0xfffffffc00d80947 */
        /*00b0*/                   STG.E.128 desc[UR8][R8.64], R4 ;         /* 0x0000000408007986 */
        /*00c0*/               @P1 BRA 0xb0 ;                               /* 0xfffffffc00f81947 */
        /*00d0*/                   EXIT ;                                   /* 0x000000000000794d */
        /*00e0*/                   BRA 0xe0 ;                               /* 0xfffffffc00fc7947 */
		Function : _ZN9paraminit4cuda16scattered_kernelINS0_8UniformFILb0EEEfEE
        /*0000*/                   EXIT ;                                   /* 0x000000000000794d */
""".replace("ARGUMENTS", ARGUMENTS)


def counted(listing: str) -> sass.Count:
    (kernel,) = sass.kernels(listing)
    return sass.count(kernel)


def with_line(listing: str, address: str, text: str) -> str:
    """Return the listing with another instruction at the address."""
    (line,) = [line for line in listing.splitlines() if f"/*{address}*/" in line and "BRA 0xe0" not in line][
        :1
    ]
    return listing.replace(line, f"        /*{address}*/                   {text} ;   /* 0x0 */")


def test_the_hot_path_of_the_loop_that_stores_most_is_counted() -> None:
    assert counted(LISTING) == sass.Count("UniformF fp32", 8, 8, [])


def test_instructions_that_no_branch_skips_are_counted() -> None:
    assert counted(with_line(LISTING, "0040", "NOP")).instructions == 10


@pytest.mark.parametrize(
    ("mangled", "name", "elements"),
    [
        ("dense_kernelINS0_14TruncInteriorFENS_8BFloat16ELb0E", "TruncInteriorF bf16", 16),
        ("dense_kernelINS0_7NormalFILb1EEENS_4HalfELb1E", "NormalF, clamped fp16, key on the device", 16),
        ("dense_kernelINS0_8UniformDILb0ELb0EEEdLb0E", "UniformD fp64", 4),
        ("many_kernelINS0_8UniformFILb1ELb0EEEfE", "UniformF, clamped fp32, many", 8),
        ("many_kernelINS0_14TruncInteriorFENS_8BFloat16EE", "TruncInteriorF bf16, many", 16),
    ],
)
def test_a_kernel_is_known_by_its_mangled_name(mangled: str, name: str, elements: int) -> None:
    kernel = counted(LISTING.replace("dense_kernelINS0_8UniformFILb0EEEfLb0E", mangled))
    assert (kernel.name, kernel.elements) == (name, elements)


def test_stores_to_an_address_of_any_space_are_counted() -> None:
    assert counted(LISTING.replace("STG.E.128", "ST.E.128")) == counted(LISTING)


def test_a_name_that_cannot_be_read_is_refused_in_one_line() -> None:
    with pytest.raises(sass.SassError, match="^sass: expected the name of a kernel of dense fills, got _ZN9"):
        sass.kernels(LISTING.replace("EEEfLb0", "EEEtLb0"))


def test_a_store_that_the_hot_path_skips_is_refused() -> None:
    skipped = with_line(LISTING, "0050", "STG.E.128 desc[UR8][R8.64], R4")
    with pytest.raises(sass.SassError, match="expected all stores on the hot path of UniformF fp32, got 2"):
        counted(skipped)


def test_a_kernel_without_wide_stores_is_refused() -> None:
    with pytest.raises(
        sass.SassError, match="expected a loop with 16-byte stores in UniformF fp32, got none"
    ):
        counted(LISTING.replace(".128", ".64"))


@pytest.mark.parametrize(
    "text", ["STL [R1], R4", "LDL R4, [R1]", "BAR.SYNC.DEFER_BLOCKING 0x0", "MUFU.SIN R4, R4"]
)
def test_instructions_that_a_main_loop_must_not_have_are_found_off_the_hot_path_too(text: str) -> None:
    assert counted(with_line(LISTING, "0050", text)).forbidden == [text.split()[0]]
    assert counted(with_line(LISTING, "0050", "MUFU.RSQ R4, R4")).forbidden == []


def test_a_count_above_its_limit_is_refused() -> None:
    limit = sass.LIMITS["UniformF fp32"]
    others = [sass.Count(name, 1, 16, []) for name in sass.LIMITS if name != "UniformF fp32"]
    within, above = (sass.Count("UniformF fp32", int(16 * limit) + more, 16, []) for more in (0, 1))
    assert sass.wrong([within, *others]) == []
    assert sass.wrong([above, *others]) == [
        f"sass: expected UniformF fp32 at most {limit:.2f} an element, got {limit + 1 / 16:.2f}"
    ]
    assert sass.wrong(others) == ["sass: expected a kernel UniformF fp32, got none"]


def test_a_key_on_the_device_may_cost_its_schedule_a_round_and_no_more() -> None:
    limit = int(sass.LIMITS["NormalF bf16"] * 16) + sass.SCHEDULE
    known = [sass.Count(name, 1, 16, []) for name in sass.LIMITS]
    assert sass.wrong([*known, sass.Count("NormalF bf16" + sass.KEY_ON_DEVICE, limit, 16, [])]) == []
    assert len(sass.wrong([*known, sass.Count("NormalF bf16" + sass.KEY_ON_DEVICE, limit + 1, 16, [])])) == 1


def test_an_extension_without_sm_90_code_is_reported_and_a_missing_path_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sass, "listing", lambda _: "")
    assert sass.main(["_C.so"]) == 0
    assert capsys.readouterr().out == "sass: not compared: _C.so has no code for sm_90\n"
    assert sass.main([]) == 1
    assert capsys.readouterr().out == "sass: expected the path of a built extension, got 0 arguments\n"


def test_a_listing_with_one_slow_kernel_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sass, "LIMITS", {"UniformF fp32": 1.0})
    monkeypatch.setattr(sass, "listing", lambda _: LISTING)
    assert sass.main(["_C.so"]) == 0
    monkeypatch.setattr(sass, "listing", lambda _: with_line(LISTING, "0040", "NOP"))
    assert sass.main(["_C.so"]) == 1
    assert "expected UniformF fp32 at most 1.00 an element, got 1.25" in capsys.readouterr().out
