"""What is known to begin in a certain way, so that it is not overwritten unasked."""

from .layout import ANY_MAGIC, BLOCK, HEADER_MAGIC, OLD_MAGIC

LOOK_AT = 132 << 10  # bytes from the beginning of a device

SIGNATURES = (
    (0, HEADER_MAGIC, "a log"),
    (0, OLD_MAGIC, "a log of an earlier format"),
    (0, ANY_MAGIC, "a log of another format, or a damaged one"),
    (BLOCK, ANY_MAGIC, "a log that is damaged"),
    (512, b"EFI PART", "a partition table"),
    (4096, b"EFI PART", "a partition table"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (0, b"XFSB", "an XFS file system"),
    (65600, b"_BHRfS_M", "a Btrfs file system"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (131072, b"\x0c\xb1\xba\x00\x00\x00\x00\x00", "a ZFS pool"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (54, b"FAT", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (32769, b"CD001", "an ISO 9660 file system"),
    (0, b"hsqs", "a SquashFS file system"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (512, b"LABELONE", "an LVM volume"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a RAID"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of a RAID"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"QFI\xfb", "a QEMU disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"vhdxfile", "a VHDX disk image"),
    (0, b"conectix", "a VHD disk image"),
    (257, b"ustar", "a tar archive"),
    (510, b"\x55\xaa", "a partition table or a boot sector"),
)


def recognise(beginning: bytes) -> str | None:
    """What the first bytes of a device belong to, as far as they are known."""
    for offset, signature, name in SIGNATURES:
        if beginning.startswith(signature, offset):
            return name
    return None
