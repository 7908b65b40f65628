package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quicklime-ir/quicklime/collector/backup"
	"github.com/quicklime-ir/quicklime/collector/desk"
	"github.com/quicklime-ir/quicklime/collector/store/etcd"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// nodeFlags say which node this is, how others reach it, and what is left when
// all are lost.
type nodeFlags struct {
	Node       string `help:"Name of this node, unlike that of every other node; the host's name where none is given." placeholder:"NAME"`
	PeerListen string `help:"IP:PORT to listen at for other nodes, or :PORT; agents have no business there. Without it the node is alone, and listens for none." and:"peer" placeholder:"IP:PORT"`
	PeerURL    string `name:"peer-url" help:"https://HOST:PORT, by which other nodes reach this one." and:"peer" placeholder:"URL"`
	PeerCert   string `help:"Certificate for HOST, as a server and as a client (PEM); read again when it is renewed." type:"path" and:"peer"`
	PeerKey    string `help:"Its private key (PEM)." type:"path" and:"peer"`
	PeerCA     string `name:"peer-ca" help:"Certificate authority of the nodes (PEM); it signs for nothing else." type:"path" and:"peer"`
	Join       string `help:"What 'cluster join' on another node has printed; nothing to a node that has joined." type:"path" placeholder:"FILE"`

	SnapshotEvery time.Duration `help:"Time between snapshots of the state to the evidence bucket, under state/; 0: none." default:"1h"`
}

// storeDir is where a collector with this data folder keeps its state.
func storeDir(data string) string { return filepath.Join(data, "store") }

// config gives the node's store.
func (f nodeFlags) config(data, agentCA string, log *slog.Logger) (etcd.Config, error) {
	c := etcd.Config{Dir: storeDir(data), Name: f.Node, Log: log}
	if c.Name == "" {
		var err error
		if c.Name, err = os.Hostname(); err != nil {
			return c, fmt.Errorf("cannot learn the host's name: give the node one with --node: %w", err)
		}
	}
	if err := etcd.CheckName(c.Name); err != nil {
		return c, fmt.Errorf("%w; name it with --node", err)
	}
	if f.PeerListen == "" {
		if f.Join != "" {
			return c, errors.New("cannot join other nodes without an address for them: give --peer-listen, --peer-url, --peer-cert, --peer-key and --peer-ca")
		}
		return c, nil
	}
	c.Peer = &etcd.Peer{Listen: f.PeerListen, URL: f.PeerURL, Cert: f.PeerCert, Key: f.PeerKey, CA: f.PeerCA}
	if err := apart(f.PeerCA, agentCA); err != nil {
		return c, err
	}
	if f.Join == "" || etcd.HasMember(c.Dir) {
		return c, nil
	}
	raw, err := readJoin(f.Join)
	if err != nil {
		return c, fmt.Errorf("cannot read join document: %w", err)
	}
	c.Join, err = etcd.ParseJoin(raw)
	return c, err
}

// maxJoin bounds a join document, in bytes.
const maxJoin = 64 << 10

func readJoin(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxJoin))
}

// apart refuses one authority for nodes and agents: every instance would be a
// node of the cluster to the others.
func apart(nodes, agents string) error {
	ours, err := authorities(nodes)
	if err != nil {
		return err
	}
	theirs, err := authorities(agents)
	if err != nil {
		return err
	}
	for _, one := range ours {
		for _, other := range theirs {
			if one.Equal(other) {
				return fmt.Errorf("cannot take authority %q for nodes (%s) and for agents (%s): an agent could pass for a node; use one for nodes alone", one.Subject, nodes, agents)
			}
		}
	}
	return nil
}

func authorities(path string) (out []*x509.Certificate, err error) {
	rest, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read certificate authority: %w", err)
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out, nil
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("cannot read certificate authority %s: %w", path, err)
		}
		out = append(out, cert)
	}
}

// nodes is the cluster as operators see it.
type nodes struct {
	*etcd.Store
	backup *backup.Backup
}

// Nodes gives the nodes of the cluster, and the last snapshot of their state.
func (n nodes) Nodes(ctx context.Context) *wire.ListNodesReply {
	out := &wire.ListNodesReply{}
	for _, m := range n.Members(ctx) {
		out.Nodes = append(out.Nodes, &wire.Node{Id: m.ID, Name: m.Name, Url: m.URL, Self: m.Self, Voter: m.Voter, Leader: m.Leader, Started: m.Started, Answers: m.Answers})
	}
	if taken := n.backup.Last(); taken.Key != "" {
		out.Snapshot = &wire.Snapshot{Key: taken.Key, Taken: timestamppb.New(taken.Time), Bytes: taken.Size}
	}
	if err := n.backup.Health(); err != nil {
		out.NoSnapshot = err.Error()
	}
	return out
}

// Join lets a node in, and gives what its serve --join takes.
func (n nodes) Join(ctx context.Context, name, url string) ([]byte, error) {
	j, err := n.Store.Join(ctx, name, url)
	if err != nil {
		return nil, err
	}
	raw, err := json.MarshalIndent(j, "", "  ")
	return append(raw, '\n'), err
}

type clusterCmd struct {
	List   clusterListCmd   `cmd:"" help:"List the nodes, and say how many may be lost."`
	Join   clusterJoinCmd   `cmd:"" help:"Let a new node in; what is printed is for its 'serve --join'."`
	Remove clusterRemoveCmd `cmd:"" help:"Take a node out for good, such as one that was lost."`
}

type clusterListCmd struct{ dataFlag }

func (c *clusterListCmd) Run(ctx context.Context, out io.Writer) error {
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	nodes, err := client.Nodes(ctx)
	if err != nil {
		return err
	}
	return desk.PrintNodes(out, nodes, time.Now())
}

type clusterJoinCmd struct {
	dataFlag
	Name string `arg:"" help:"Name of the new node."`
	URL  string `arg:"" help:"https://HOST:PORT, by which the others will reach it."`
}

func (c *clusterJoinCmd) Run(ctx context.Context, out io.Writer) error {
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	raw, err := client.JoinNode(ctx, c.Name, c.URL)
	if err != nil {
		return err
	}
	_, err = out.Write(raw)
	return err
}

type clusterRemoveCmd struct {
	dataFlag
	Name string `arg:"" help:"Name of the node."`
}

func (c *clusterRemoveCmd) Run(ctx context.Context) error {
	client, err := desk.Dial(c.Data)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.RemoveNode(ctx, c.Name)
}
