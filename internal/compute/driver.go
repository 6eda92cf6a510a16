// Package compute runs branches' PostgreSQL servers: one start per endpoint however many ask for it, a handle that survives
// this process, the watch over crashes and idleness, and the stop. How a server runs is a Driver's business.
package compute

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/postgres"
)

// HandleVersion is the version of Handle that this code writes. It reads this one and older ones.
const HandleVersion = 1

// Handle finds a started server again after this process was replaced. It is kept as JSON.
type Handle struct {
	Version    int       `json:"version"`
	PID        int       `json:"pid"`
	StartTicks uint64    `json:"start_ticks"` // field 22 of /proc/<pid>/stat: tells a reused pid from the one started
	BootID     string    `json:"boot_id"`     // pids of an earlier boot mean nothing
	DataDir    string    `json:"data_dir"`
	SocketDir  string    `json:"socket_dir"`
	StartedAt  time.Time `json:"started_at"`
}

// Launch is what a driver needs to start one server.
type Launch struct {
	EndpointID string
	Build      postgres.Build
	DataDir    string
	SocketDir  string        // exists, mode 0700, belongs to the server's OS user
	LogFile    string        // standard error is appended to it
	Args       []string      // after -D, as name=value settings for -c
	Group      *cgroup.Group // exists and holds the server from its first moment; nil: none
}

// Exit says how a server ended. Status is only known for servers started by this very process.
type Exit struct {
	At     time.Time
	Status string // such as "exit status 1" or "signal: killed"; "unknown" for an adopted server
	Clean  bool   // it shut down by itself, with status 0
}

// StopMode is how a server is asked to stop.
type StopMode int

// The stop modes.
const (
	StopFast      StopMode = iota // end sessions, write a checkpoint: nothing to replay at the next start
	StopImmediate                 // quit at once; the WAL is replayed at the next start
	StopKill                      // SIGKILL to everything that runs on the data directory
)

// Driver runs servers. Implementations are safe for concurrent use.
type Driver interface {
	// Start returns as soon as the server's process exists; it does not wait for readiness. On error nothing runs.
	Start(ctx context.Context, l Launch) (Process, error)
	// Attach finds a server by its handle. It fails with core.KindNotFound when that server is gone, and never attaches to
	// another process that got its pid.
	Attach(ctx context.Context, h Handle) (Process, error)
	// Clear ends everything that still runs on a data directory, without a clean shutdown, and removes what a dead server
	// left there and would stop the next from starting. It costs next to nothing when there is nothing to do. It must not be
	// called for a server that somebody uses.
	Clear(ctx context.Context, dataDir, socketDir string) error
	// Scan lists the servers whose data directory lies under prefix, whoever started them.
	Scan(ctx context.Context, prefix string) ([]Found, error)
}

// Found is a running server that Scan came across.
type Found struct {
	PID     int
	DataDir string
}

// Process is one running server.
type Process interface {
	Handle() Handle
	// Done is closed when the server's main process has ended and was reaped. Its children may outlive it: see Driver.Clear.
	Done() <-chan struct{}
	// Exit is valid once Done is closed.
	Exit() Exit
	// Signal asks the server to stop (or, with StopKill, makes it); it does not wait. It does nothing when the server has ended.
	Signal(mode StopMode) error
	// Promote ends the server's recovery. The server must be in recovery already.
	Promote() error
	// Release gives up watching the process, which keeps running. Done stays open. It is safe twice.
	Release()
}
