package steps

import (
	"fmt"
	"strings"

	"github.com/quicklime-ir/quicklime/collector/notify"
	wire "github.com/quicklime-ir/quicklime/proto/wire/v1"
)

// namedHosts is how many hosts one message names.
const namedHosts = 15

// UnableHosts says which hosts' memory could not be captured now, so that it
// is known before it matters.
func UnableHosts(hosts []*wire.AttachedAgent) notify.Message {
	var lines []string
	for _, a := range hosts[:min(len(hosts), namedHosts)] {
		lines = append(lines, fmt.Sprintf("%s %s, kernel %s: %s", a.GetId(), a.GetHello().GetHostname(), a.GetHello().GetKernelRelease(), wire.Verdicts(a.GetHello())))
	}
	if more := len(hosts) - namedHosts; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more: 'quicklime-collector agent list --unable'", more))
	}
	return notify.Message{Colour: notify.Amber, Title: fmt.Sprintf("Memory of %d hosts could not be captured", len(hosts)),
		Body:   "Their agents say that no memory source works there. A case of one of them would have processes, files and disks, and no memory image.",
		Fields: []notify.Field{{Name: "Hosts", Value: strings.Join(lines, "\n")}}}
}
