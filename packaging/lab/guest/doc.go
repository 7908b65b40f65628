// Package guest is the lab's instance: a real Debian EC2 kernel in an emulated
// machine, with the agent installed, a LiME module built for exactly that
// kernel, and a planted intrusion. It exists so that a capture is proved against
// a running kernel whose secrets the lab knows in advance, on any machine, with
// no account and no virtualisation hardware.
//
// Prepare fills a cache folder once with the kernel and the module. Boot packs
// an initramfs, starts the machine and plants the intrusion; Ready tells what
// stands in it. The machine never outlives its parent, however that one ends.
package guest
