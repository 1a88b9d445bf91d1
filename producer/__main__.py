"""``python -m producer`` is ``whisper-fleet``."""

from producer.cli import main

if __name__ == "__main__":
    main()
