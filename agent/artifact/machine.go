package artifact

import (
	"context"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v3/common"
	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/load"
	"github.com/shirou/gopsutil/v3/mem"
	"golang.org/x/sys/unix"
)

// Machine is the row of the table host.
type Machine struct {
	Hostname      Text      `json:"hostname"`
	Kernel        Text      `json:"kernel"`         // uname -r
	KernelVersion Text      `json:"kernel_version"` // /proc/version
	CommandLine   Text      `json:"command_line"`   // of the kernel
	Architecture  Text      `json:"architecture"`
	OS            Text      `json:"os"` // PRETTY_NAME of os-release(5)
	MachineID     Text      `json:"machine_id,omitempty"`
	BootID        Text      `json:"boot_id"`
	Booted        time.Time `json:"booted"` // by the clock as it is now set

	// The clock: what it said, nanoseconds since boot at the same moment, and
	// whether the kernel holds it to be synchronized, within which error.
	Now               time.Time `json:"now"`
	SinceBootNS       int64     `json:"since_boot_ns"`
	ClockSynchronized bool      `json:"clock_synchronized"`
	ClockMaxErrorUS   int64     `json:"clock_max_error_us"`
	LocalTime         Text      `json:"local_time,omitempty"` // target of /etc/localtime

	CPUs           int     `json:"cpus"`
	CPUModel       Text    `json:"cpu_model,omitempty"`
	Load1          float64 `json:"load1"`
	Load5          float64 `json:"load5"`
	Load15         float64 `json:"load15"`
	MemoryBytes    uint64  `json:"memory_bytes"`
	AvailableBytes uint64  `json:"available_bytes"`
	SwapBytes      uint64  `json:"swap_bytes"`
	SwapFreeBytes  uint64  `json:"swap_free_bytes"`

	// Settings are the files of /proc and /sys that tell how far the host may
	// have been tampered with, by path; absent ones are left out.
	Settings map[string]Text `json:"settings"`
}

// settings are the files of Machine.Settings.
var settings = []string{
	"/proc/sys/kernel/tainted",
	"/proc/sys/kernel/core_pattern",
	"/proc/sys/kernel/modprobe",
	"/proc/sys/kernel/modules_disabled",
	"/proc/sys/kernel/randomize_va_space",
	"/proc/sys/kernel/kptr_restrict",
	"/proc/sys/kernel/dmesg_restrict",
	"/proc/sys/kernel/unprivileged_bpf_disabled",
	"/proc/sys/kernel/ftrace_enabled",
	"/proc/sys/kernel/kexec_load_disabled",
	"/proc/sys/kernel/yama/ptrace_scope",
	"/proc/sys/net/ipv4/ip_forward",
	"/sys/kernel/security/lockdown",
	"/sys/kernel/security/lsm",
	"/sys/fs/selinux/enforce",
	"/sys/devices/system/clocksource/clocksource0/current_clocksource",
}

// fillMachine writes the table host.
func fillMachine(h *Host, s *sheet) error {
	m := &Machine{
		KernelVersion: s.text(h.path("proc/version"), maxPath),
		CommandLine:   s.text(h.path("proc/cmdline"), maxPath),
		Hostname:      s.text(h.path("proc/sys/kernel/hostname"), maxWord),
		Kernel:        s.text(h.path("proc/sys/kernel/osrelease"), maxWord),
		BootID:        s.text(h.path("proc/sys/kernel/random/boot_id"), maxWord),
		MachineID:     s.text(h.path("etc/machine-id"), maxWord),
		Settings:      map[string]Text{},
	}
	var err error
	if m.Booted, err = h.booted(); err != nil {
		s.failed("/proc/uptime", err)
	}
	m.Booted = m.Booted.UTC()
	m.readOS(h, s)
	m.readClock(h, s)
	m.readLoad(h, s)
	for _, path := range settings {
		if value := s.text(h.path(path), maxPath); value != "" {
			m.Settings[path] = value
		}
	}
	return s.put(m)
}

func (m *Machine) readOS(h *Host, s *sheet) {
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		s.failed("uname", err)
	}
	m.Architecture = cString(uname.Machine[:])
	for _, path := range []string{"etc/os-release", "usr/lib/os-release"} {
		for line := range strings.Lines(string(s.text(h.path(path), maxLine))) {
			if value, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok && m.OS == "" {
				m.OS = clip(strings.Trim(value, "\"'\n"), maxWord)
			}
		}
	}
}

// readClock asks the kernel's clock how well it is kept. Reading alone, as
// Modes is 0, changes nothing.
func (m *Machine) readClock(h *Host, s *sheet) {
	var state unix.Timex
	code, err := unix.Adjtimex(&state)
	if err != nil {
		s.failed("adjtimex", err)
	}
	m.ClockSynchronized = err == nil && code != unix.TIME_ERROR
	m.ClockMaxErrorUS = int64(state.Maxerror)
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		s.failed("clock_gettime", err)
	}
	m.Now, m.SinceBootNS = time.Now().UTC(), boot.Nano()
	var target [maxPath]byte
	n, err := unix.Readlink(h.path("etc/localtime"), target[:])
	if err == nil {
		m.LocalTime = Text(target[:n])
	} else if !gone(err) && err != unix.EINVAL { // EINVAL: a file, not a link
		s.failed("/etc/localtime", err)
	}
}

// readLoad asks gopsutil, whose readings of these are sound and start no
// program; its host package may, so it is not used.
func (m *Machine) readLoad(h *Host, s *sheet) {
	ctx := context.WithValue(s.ctx, common.EnvKey, common.EnvMap{
		common.HostProcEnvKey: h.path("proc"), common.HostSysEnvKey: h.path("sys"),
	})
	if avg, err := load.AvgWithContext(ctx); err == nil {
		m.Load1, m.Load5, m.Load15 = avg.Load1, avg.Load5, avg.Load15
	} else {
		s.failed("/proc/loadavg", err)
	}
	if memory, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		m.MemoryBytes, m.AvailableBytes = memory.Total, memory.Available
		m.SwapBytes, m.SwapFreeBytes = memory.SwapTotal, memory.SwapFree
	} else {
		s.failed("/proc/meminfo", err)
	}
	if cpus, err := cpu.InfoWithContext(ctx); err == nil {
		m.CPUs = len(cpus)
		if len(cpus) > 0 {
			m.CPUModel = clip(cpus[0].ModelName, maxWord)
		}
	} else {
		s.failed("/proc/cpuinfo", err)
	}
}
