// Package isf builds the symbol file by which Volatility 3 reads a Linux
// memory image, out of the bundle that the agent took beside it. No debug
// package of the kernel is needed.
//
// The file is JSON in the Intermediate Symbol Format, schema 6.2.0. Its types
// come from BTF, which every distribution's kernel since about 5.4 carries; its
// symbols from /proc/kallsyms, moved back to where the kernel was linked, as
// Volatility adds the move by itself; the move, KERNELOFFSET, from VMCOREINFO;
// and the banner, by which Volatility finds the file, from /proc/version.
//
// What it cannot have, Report names. BTF knows the types of functions
// and of per-processor variables alone, so those of the variables that Volatility asks for stand in
// a table here; a variable that is not in it has an address and no type. A name
// that several symbols share, as static ones may, is left out where nothing
// tells them apart: the format has one address for a name. The types of modules
// are not read.
//
// What shows on the other side, with Volatility 3 2.28.2 and Debian's kernel
// 6.1: nearly all of its Linux plugins run. hidden_modules does not, as it
// refuses every file that dwarf2json has not made, by a test of the maker's
// version that is upside down; sockscan stops at a file whose inode is gone,
// whatever the symbols; pscallstack wants kallsyms_markers, whose address the
// kernel tells nobody. It reads no images of arm64, none with five levels of
// page tables, and no zstd, so an image is exported first.
//
// The bundle is of a host that was broken into: its sizes are bounded, its
// names are data, and nothing of it chooses a path.
package isf
