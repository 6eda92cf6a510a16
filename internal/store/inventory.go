package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/boughdb/bough/internal/core"
)

// Inventory is what the control database says there should be, as of one moment.
type Inventory struct {
	Meta      map[string]string
	Projects  []InventoryProject
	Branches  []InventoryBranch
	Endpoints []InventoryEndpoint
	Snapshots []InventorySnapshot
	Handles   []Handle
	Open      []InventoryOperation // in order
	Holders   map[string]int64     // the servers of projects, by project
	// Position is where the control database is in its history; zero when it does not tell.
	Position Position
}

// Position is a moment in the history of a PostgreSQL cluster. One that was restored from a backup is at an earlier one, or
// has another history.
type Position struct {
	System string   `json:"system"` // the cluster's identifier, given by initdb
	LSN    core.LSN `json:"lsn"`
}

// InventoryProject is a project, also while it is being deleted.
type InventoryProject struct {
	ID       string
	Major    int
	Deleting bool
}

// InventoryBranch is a branch, also while it is being deleted.
type InventoryBranch struct {
	ID, ProjectID string
	Volume        string
	Incarnation   int
	State         core.BranchState
	Pending       core.BranchState
	Promote       bool
	Deleting      bool
	Changed       time.Time
}

// InventoryEndpoint is an endpoint, also while it is being deleted.
type InventoryEndpoint struct {
	ID, ProjectID, BranchID string
	Type                    core.EndpointType
	State, Pending          core.EndpointState
	Disabled, Deleting      bool
}

// InventorySnapshot is a volume of a branch's history.
type InventorySnapshot struct {
	ID       int64
	Volume   string
	State    core.SnapshotState
	BranchID string
}

// InventoryOperation is an operation that has not ended.
type InventoryOperation struct {
	ID, BranchID, EndpointID string
	Action                   core.OperationAction
	Server                   *int64 // that claimed it; nil: none has
	Updated                  time.Time
}

// Inventory reads everything in one snapshot. It costs a query a table, whatever the number of rows.
func (s *Store) Inventory(ctx context.Context) (Inventory, error) {
	return inventory(ctx, s.pool)
}

// ReadInventory reads the inventory of a control database that no server uses, without changing its schema. It fails with
// KindUnavailable when the database does not answer.
func ReadInventory(ctx context.Context, url string) (Inventory, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return Inventory{}, core.Wrap(err, "store.inventory", "check --database-url")
	}
	cfg.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err == nil {
		defer pool.Close()
		err = pool.Ping(ctx)
	}
	if err != nil {
		return Inventory{}, &core.Error{Kind: core.KindUnavailable, Op: "store.inventory", Message: "the control database does not answer", Err: err}
	}
	inv, err := inventory(ctx, pool)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "42703") { // undefined table or column
		return inv, &core.Error{Kind: core.KindUnavailable, Op: "store.inventory",
			Message: "the control database was made by another version of bough; start the server once", Err: err}
	}
	return inv, err
}

func inventory(ctx context.Context, pool *pgxpool.Pool) (Inventory, error) {
	inv := Inventory{Meta: map[string]string{}, Holders: map[string]int64{}}
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		type pair struct{ key, value string }
		meta, err := collect(ctx, tx, "SELECT key, value FROM meta", func(r pgx.CollectableRow) (p pair, err error) {
			return p, r.Scan(&p.key, &p.value)
		})
		for _, p := range meta {
			inv.Meta[p.key] = p.value
		}
		if err != nil {
			return err
		}
		inv.Projects, err = collect(ctx, tx, "SELECT id, pg_version, deleting FROM projects", func(r pgx.CollectableRow) (p InventoryProject, err error) {
			return p, r.Scan(&p.ID, &p.Major, &p.Deleting)
		})
		if err != nil {
			return err
		}
		inv.Branches, err = collect(ctx, tx, `SELECT id, project_id, volume_id, incarnation, state, pending_state, promote, deleting, updated_at
			FROM branches`, func(r pgx.CollectableRow) (b InventoryBranch, err error) {
			return b, r.Scan(&b.ID, &b.ProjectID, &b.Volume, &b.Incarnation, &b.State, &b.Pending, &b.Promote, &b.Deleting, &b.Changed)
		})
		if err != nil {
			return err
		}
		inv.Endpoints, err = collect(ctx, tx, `SELECT id, project_id, branch_id, type, state, pending_state, disabled, deleting
			FROM endpoints`, func(r pgx.CollectableRow) (e InventoryEndpoint, err error) {
			return e, r.Scan(&e.ID, &e.ProjectID, &e.BranchID, &e.Type, &e.State, &e.Pending, &e.Disabled, &e.Deleting)
		})
		if err != nil {
			return err
		}
		inv.Snapshots, err = collect(ctx, tx, `SELECT s.id, s.volume, s.state, i.branch_id FROM history_snapshots s
			JOIN incarnations i ON i.id = s.incarnation`, func(r pgx.CollectableRow) (n InventorySnapshot, err error) {
			return n, r.Scan(&n.ID, &n.Volume, &n.State, &n.BranchID)
		})
		if err != nil {
			return err
		}
		inv.Handles, err = collect(ctx, tx, "SELECT compute_id, branch_id, handle, started_at FROM handles", func(r pgx.CollectableRow) (h Handle, err error) {
			return h, r.Scan(&h.ComputeID, &h.BranchID, &h.Handle, &h.StartedAt)
		})
		if err != nil {
			return err
		}
		inv.Open, err = collect(ctx, tx, `SELECT o.id, o.branch_id, o.endpoint_id, o.action, o.claimed_by, o.updated_at
			FROM operations o WHERE o.status IN ('scheduling', 'running') ORDER BY o.seq`,
			func(r pgx.CollectableRow) (o InventoryOperation, err error) {
				return o, r.Scan(&o.ID, &o.BranchID, &o.EndpointID, &o.Action, &o.Server, &o.Updated)
			})
		if err != nil {
			return err
		}
		type held struct {
			project string
			server  int64
		}
		holders, err := collect(ctx, tx, "SELECT project_id, server FROM holders", func(r pgx.CollectableRow) (h held, err error) {
			return h, r.Scan(&h.project, &h.server)
		})
		for _, h := range holders {
			inv.Holders[h.project] = h.server
		}
		return err
	})
	if err == nil {
		// Beside the transaction: a database that does not let its user ask is left out, not failed.
		var lsn string
		row := pool.QueryRow(ctx, "SELECT system_identifier::text, pg_current_wal_flush_lsn()::text FROM pg_control_system()")
		if row.Scan(&inv.Position.System, &lsn) == nil {
			inv.Position.LSN, err = core.ParseLSN(lsn)
		}
	}
	return inv, internal(err)
}

func collect[T any](ctx context.Context, tx pgx.Tx, sql string, scan func(pgx.CollectableRow) (T, error), args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}
