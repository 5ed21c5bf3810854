"""`python -m image_client.cli` is `image-client`."""

from image_client.cli import main

if __name__ == "__main__":
    main()
