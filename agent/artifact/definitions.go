package artifact

// Definition says which files make up one artifact. The form follows
// ForensicArtifacts definitions of type FILE.
type Definition struct {
	Name  string   // as in the record's source
	Doc   string   // what it holds, in a sentence
	Paths []string // patterns, which may start with %%users.homedir%%
	// FileBytes and TotalBytes bound one file, and all of this definition's
	// files; 0 leaves it to Limits.
	FileBytes, TotalBytes int64
	// Public leaves private keys where they are: such a file is recorded as
	// seen, and not taken.
	Public bool
}

// Bounds of folders that anyone may write to.
const (
	anyonesFile  = 10 << 20
	anyonesTotal = 1 << 30
)

// Definitions lists the files that are collected, the most volatile first. No
// path of one is among another's.
func Definitions() []Definition {
	return []Definition{
		{
			Name: "SharedMemory", Doc: "Files in RAM that anyone may write: gone at power-off.",
			Paths: []string{"/dev/shm/**"}, FileBytes: anyonesFile, TotalBytes: anyonesTotal,
		},
		{
			Name: "ShellHistories", Doc: "What users typed into shells, databases, editors and pagers.",
			Paths: []string{
				"%%users.homedir%%/.*history",
				"%%users.homedir%%/.*_hist",
				"%%users.homedir%%/.*hsts",
				"%%users.homedir%%/.lesshst",
				"%%users.homedir%%/.viminfo",
				"%%users.homedir%%/.local/share/fish/fish_history",
				"%%users.homedir%%/.local/share/nano/search_history",
				"%%users.homedir%%/.local/share/recently-used.xbel",
				"%%users.homedir%%/.local/state/nvim/shada/*",
				"%%users.homedir%%/.config/lftp/rl_history",
			},
			FileBytes: 64 << 20,
		},
		{
			Name: "JournalVolatile", Doc: "systemd's journal in RAM: where Amazon Linux 2 and RHEL keep it.",
			Paths: []string{"/run/log/journal/**"},
		},
		{
			Name: "LoginRecords", Doc: "Who is logged in.",
			Paths: []string{"/run/utmp"},
		},
		{
			Name: "TemporaryFiles", Doc: "Folders that anyone may write to.",
			Paths: []string{"/tmp/**", "/var/tmp/**"}, FileBytes: anyonesFile, TotalBytes: anyonesTotal,
		},
		{
			Name: "Logs", Doc: "Every log: journal, syslog, audit, logins, cloud-init, SSM agent, web servers.",
			Paths: []string{"/var/log/**"},
		},
		{
			Name: "SSHUsers", Doc: "Each user's SSH keys that let in, hosts known, and settings.",
			Paths: []string{"%%users.homedir%%/.ssh/*"}, FileBytes: anyonesFile, Public: true,
		},
		{
			Name: "SSHServer", Doc: "The SSH server's settings and public keys.",
			Paths: []string{"/etc/ssh/**3"}, FileBytes: anyonesFile, Public: true,
		},
		{
			Name: "ScheduledJobs", Doc: "Jobs of cron, at and anacron.",
			Paths: []string{"/etc/crontab", "/etc/anacrontab", "/etc/cron.*", "/etc/cron.*/**", "/var/spool/cron/**", "/var/spool/at/**", "/var/spool/anacron/*"},
		},
		{
			Name: "SSMCommands", Doc: "The scripts that Systems Manager ran on this host, and what they printed.",
			Paths: []string{"/var/lib/amazon/ssm/*/document/orchestration/**"},
		},
		{
			Name: "SSMSettings", Doc: "The settings of the Systems Manager agent.",
			Paths: []string{"/etc/amazon/ssm/**", "/snap/amazon-ssm-agent/current/*.json"},
		},
		{
			Name: "CloudInit", Doc: "The user data this instance was started with, and the scripts that run at each boot.",
			Paths: []string{
				"/var/lib/cloud/instances/*/user-data.txt",
				"/var/lib/cloud/instances/*/user-data.txt.i",
				"/var/lib/cloud/instances/*/vendor-data*.txt",
				"/var/lib/cloud/instances/*/scripts/*",
				"/var/lib/cloud/scripts/**2",
				"/etc/cloud/**3",
			},
		},
		{
			Name: "ServiceUnits", Doc: "Units and timers that were added to, or override, the distribution's.",
			Paths: []string{"/etc/systemd/**", "/run/systemd/system/**", "/run/systemd/transient/**", "%%users.homedir%%/.config/systemd/user/**"},
		},
		{
			Name: "Accounts", Doc: "Accounts, groups, password hashes, and who may become root.",
			Paths: []string{
				"/etc/passwd", "/etc/passwd-", "/etc/group", "/etc/group-", "/etc/shadow", "/etc/shadow-",
				"/etc/gshadow", "/etc/gshadow-", "/etc/subuid", "/etc/subgid", "/etc/sudoers", "/etc/sudoers.d/**", "/etc/pam.d/*", "/etc/security/**2",
			},
		},
		{
			Name: "NameResolution", Doc: "Where names are looked up.",
			Paths: []string{"/etc/hosts", "/etc/hosts.allow", "/etc/hosts.deny", "/etc/resolv.conf", "/etc/nsswitch.conf", "/run/systemd/resolve/*.conf"},
		},
		{
			Name: "Loader", Doc: "Libraries that the loader puts into every program.",
			Paths: []string{"/etc/ld.so.preload", "/etc/ld.so.conf", "/etc/ld.so.conf.d/*", "/etc/environment"},
		},
		{
			Name: "StartFiles", Doc: "What runs at boot and at each login.",
			Paths: []string{
				"/etc/rc.local", "/etc/rc.d/rc.local", "/etc/rc.d/init.d/*", "/etc/init.d/*", "/etc/inittab",
				"/etc/profile", "/etc/profile.d/**", "/etc/bash.bashrc", "/etc/bashrc", "/etc/zsh/*", "/etc/update-motd.d/*",
				"/etc/modules", "/etc/modules-load.d/*", "/etc/modprobe.d/*", "/etc/udev/rules.d/*", "/etc/xdg/autostart/*",
				"%%users.homedir%%/.bashrc", "%%users.homedir%%/.bash_profile", "%%users.homedir%%/.bash_login", "%%users.homedir%%/.bash_logout",
				"%%users.homedir%%/.bash_aliases", "%%users.homedir%%/.profile", "%%users.homedir%%/.zshrc", "%%users.homedir%%/.zshenv",
				"%%users.homedir%%/.zprofile", "%%users.homedir%%/.zlogin", "%%users.homedir%%/.pam_environment", "%%users.homedir%%/.forward",
				"%%users.homedir%%/.config/fish/config.fish", "%%users.homedir%%/.config/autostart/*",
			},
			FileBytes: anyonesFile,
		},
		{
			Name: "Release", Doc: "Which system this is.",
			Paths: []string{"/etc/os-release", "/usr/lib/os-release", "/etc/system-release", "/etc/machine-id", "/etc/hostname", "/etc/localtime", "/etc/fstab"},
		},
	}
}
