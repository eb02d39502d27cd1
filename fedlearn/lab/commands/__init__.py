"""The lab's sub-commands, one file each: ``main(arguments) -> exit status``."""
