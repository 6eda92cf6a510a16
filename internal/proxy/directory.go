package proxy

import (
	"context"

	"github.com/boughdb/bough/internal/core"
)

// Target is what the door must know of an endpoint before it lets a client authenticate.
type Target struct {
	EndpointID string
	ProjectID  string
	BranchID   string
	Disabled   bool // connections are refused
	Running    bool // the compute is up: its catalog, not our copy, says who may log in
	Access     core.Access
}

// Directory knows endpoints, who may log in to them, and where their computes are. Its errors are *core.Error.
type Directory interface {
	// Resolve finds an endpoint by id, without the -pooler suffix. An unknown one is KindNotFound.
	Resolve(ctx context.Context, endpointID string) (Target, error)

	// Verifier returns a role's SCRAM verifier, "SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>", on the
	// endpoint's branch. found is false when there is no such role or it cannot log in with a password. With fresh the
	// catalog of a running compute is read and the stored copy brought up to date; it never wakes a compute. The door asks
	// so once per connection to a running compute: answer over a connection that is kept open.
	Verifier(ctx context.Context, endpointID, role string, fresh bool) (verifier string, found bool, err error)

	// Wake returns the path of the compute's socket once it accepts connections, starting the compute when it sleeps.
	// Concurrent calls share one start, which goes on when one caller's ctx ends. It is called again when the socket does
	// not answer. The error's message is shown to the client.
	Wake(ctx context.Context, endpointID string) (socketPath string, err error)
}

// Meter is told what passes. Its methods are called from the relay and must return at once.
type Meter interface {
	// SessionOpened is called when a client has authenticated, before the compute is woken.
	SessionOpened(endpointID string)
	SessionClosed(endpointID string)
	// Transferred adds bytes of the Postgres protocol, without TLS; about every MiB, at Server.Report and at a session's end.
	Transferred(endpointID string, fromClient, toClient int64)
}
