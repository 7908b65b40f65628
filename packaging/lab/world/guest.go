package world

import "github.com/quicklime-ir/quicklime/packaging/lab/guest"

// The agent's files in the guest.
const (
	certPath = "/etc/quicklime/agent.crt"
	keyPath  = "/etc/quicklime/agent.key"

	// GuestCA is the lab's certificate authority in the guest.
	GuestCA = "/etc/quicklime/ca.crt"
)

// Guest says how to boot an instance whose agent attaches to this world.
func (w *World) Guest(kit *guest.Kit, instance string) (guest.Config, error) {
	pair, ca, err := w.AgentPair(instance)
	if err != nil {
		return guest.Config{}, err
	}
	return guest.Config{Kit: kit, Init: w.cfg.Binaries.Init, Agent: w.cfg.Binaries.Agent,
		AgentArgs: []string{"run", "--collector", w.CollectorGuestAddr(), "--cert", certPath, "--key", keyPath, "--ca", GuestCA, "--s3-ca", GuestCA},
		Files: map[string]guest.File{
			certPath: {Mode: 0o600, Data: pair.Cert}, keyPath: {Mode: 0o600, Data: pair.Key}, GuestCA: {Mode: 0o644, Data: ca},
		}}, nil
}
