# SPDX-License-Identifier: Apache-2.0
"""Images: from an OCI layout, an archive or a registry to the layers that a member's root is made of.

    references   names: mysql:8, docker.io/library/mysql:8, …@sha256:…
    documents    index, manifest and config, checked; which image of an index fits this machine
    source       a layout directory or an archive, as names → bytes
    unpack       one layer: read, decompress, hash, and hand to nsrun-unpack, the confined writer
    store        what is kept below LIB/images, and who may remove it
    lookup       which image a word means: all that join needs
    intake       load and pull, from the outside to the store
    pull         from a registry, through skopeo
    bundle       an image's config as an OCI runtime config; `image unpack`

OCI image-spec 1.1; the rules are those of docs/images.md.
"""
