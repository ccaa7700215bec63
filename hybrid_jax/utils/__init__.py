"""What has no subject of this package: the command line, the process, images in a grid."""
