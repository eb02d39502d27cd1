"""The sub-commands of ``fedlearn-device``, one a file: ``main(arguments) -> exit status``."""
