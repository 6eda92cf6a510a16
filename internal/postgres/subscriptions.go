package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
)

// A child of a subscriber has its parent's subscriptions, with the names of the parent's slots. If it acted on them it would
// take the parent's place at the publisher, so no logical replication worker may run before DetachSubscriptions. Whether
// that is so can only be chosen at a server's start, and costs a second one; most clusters have never had a subscription,
// and those that are known not to have any start as they are.

// standbySignal makes a copy's first start a recovery. PostgreSQL ignores its content and removes it at the promotion; a
// copy of the copy gets a new one. So a note in it says something about this very copy, as long as it is true.
const standbySignal = "standby.signal"

const noSubscriptions = "# no subscriptions\n"

// NoteNoSubscriptions records in a copy that has not been started yet that it holds no subscription.
func NoteNoSubscriptions(dataDir string) error {
	const op = "postgres.note_no_subscriptions"
	// In place: the file keeps its owner, and half a note is none.
	f, err := os.OpenFile(filepath.Join(dataDir, standbySignal), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return core.Wrap(err, op, "")
	}
	_, err = f.WriteString(noSubscriptions)
	return core.Wrap(errors.Join(err, f.Close()), op, "")
}

// MayHaveSubscriptions tells whether a fresh copy that has not been started may hold a subscription. It is false only when
// that is certain: it was noted, or the copy is of a cleanly stopped cluster whose catalog is empty.
func MayHaveSubscriptions(dataDir string) bool {
	note, err := os.ReadFile(filepath.Join(dataDir, standbySignal))
	if err != nil {
		return true // it has been started
	}
	if string(note) == noSubscriptions {
		return false
	}
	control, err := ReadControl(dataDir)
	if err != nil || control.State != StateShutDown {
		return true // WAL that is not replayed yet may bring one
	}
	_, empty, err := SubscriptionCatalog(dataDir)
	return err != nil || !empty
}

// SubscriptionCatalog tells whether the file of a data directory's pg_subscription is empty, and how WAL names it: a cluster
// has no subscription when it is, and when no WAL that is still to be replayed mentions that name. (One that was rewritten
// under another name is mentioned where it was dropped.)
func SubscriptionCatalog(dataDir string) (locator []byte, empty bool, err error) {
	const op = "postgres.subscription_catalog"
	path, err := subscriptionFile(dataDir)
	if err != nil {
		return nil, false, core.Wrap(err, op, "")
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, false, core.Wrap(err, op, "")
	}
	number, err := strconv.ParseUint(filepath.Base(path), 10, 32)
	if err != nil {
		return nil, false, core.Wrap(err, op, "")
	}
	// RelFileLocator of src/include/storage/relfilelocator.h: tablespace, database (0 for shared catalogs), relation.
	locator = binary.NativeEndian.AppendUint32(nil, globalTablespace)
	locator = binary.NativeEndian.AppendUint32(locator, 0)
	return binary.NativeEndian.AppendUint32(locator, uint32(number)), info.Size() == 0, nil
}

// The relation map of the shared catalogs, from src/backend/utils/cache/relmapper.c: magic, number of entries, and pairs of a
// catalog's OID and the name of its file.
const (
	globalTablespace      = 1664 // GLOBALTABLESPACE_OID in src/include/catalog/pg_tablespace.dat
	relMapMagic           = 0x592717
	relMapMax             = 64
	subscriptionRelation  = 6100 // SubscriptionRelationId in src/include/catalog/pg_subscription.h
	relMapHeader, relPair = 8, 8
)

// subscriptionFile is the path of pg_subscription's first file.
func subscriptionFile(dataDir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dataDir, "global", "pg_filenode.map"))
	if err != nil {
		return "", err
	}
	u32 := func(off int) uint32 { return binary.NativeEndian.Uint32(raw[off:]) }
	if len(raw) < relMapHeader || u32(0) != relMapMagic || u32(4) > relMapMax || len(raw) < relMapHeader+int(u32(4))*relPair {
		return "", errors.New("pg_filenode.map cannot be read")
	}
	for i := range int(u32(4)) {
		if at := relMapHeader + i*relPair; u32(at) == subscriptionRelation {
			return filepath.Join(dataDir, "global", fmt.Sprint(u32(at+4))), nil
		}
	}
	return "", errors.New("pg_filenode.map does not know pg_subscription")
}

// NeverSubscribed tells whether the primary has no subscription, and has had none for a while: the file of a dropped one is
// emptied by a later VACUUM. So what it says is true of a copy that was made a moment ago, too.
func (s *Source) NeverSubscribed(ctx context.Context) (bool, error) {
	var size int64
	err := s.conn.QueryRow(ctx, "SELECT pg_relation_size('pg_catalog.pg_subscription')").Scan(&size)
	return size == 0, core.Wrap(err, "postgres.never_subscribed", "")
}

// NoLogicalWorkers is the argument of a server that acts on no subscription.
const NoLogicalWorkers = "max_logical_replication_workers=0"

// DetachSubscriptions disables the subscriptions of all databases and parts them from their slots at the publishers, as ALTER
// SUBSCRIPTION … DISABLE and SET (slot_name = NONE) do. The catalog is shared, so one session does it for databases that let
// nobody in, too. conn is a session with a server that runs with NoLogicalWorkers.
func DetachSubscriptions(ctx context.Context, conn *pgx.Conn) (n int64, err error) {
	tag, err := conn.Exec(ctx, "UPDATE pg_catalog.pg_subscription SET subenabled = false, subslotname = NULL WHERE subenabled OR subslotname IS NOT NULL")
	return tag.RowsAffected(), core.Wrap(err, "postgres.detach_subscriptions", "")
}

// LogicalWorkersHeld tells whether a server runs with NoLogicalWorkers.
func LogicalWorkersHeld(ctx context.Context, conn *pgx.Conn) (bool, error) {
	var held bool
	err := conn.QueryRow(ctx, "SELECT setting = '0' AND source = 'command line' FROM pg_catalog.pg_settings WHERE name = 'max_logical_replication_workers'").Scan(&held)
	return held, core.Wrap(err, "postgres.logical_workers_held", "")
}
