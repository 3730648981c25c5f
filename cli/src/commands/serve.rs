//! `landfall serve`: the disks of a point over NBD, straight from the vault.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use landfall_model::{DiskName, Error, ErrorKind, Result};
use landfall_nbd::server::{Disk, Listening, Server};
use landfall_restore::{Overlay, PointView, ReadOnly};
use serde_json::json;

use crate::args::{Common, Serve};
use crate::{interrupt, output};

/// Serves until it is told to stop.
pub(crate) async fn run(common: &Common, args: Serve) -> Result<ExitCode> {
    let stop = interrupt::first();
    let recovery = common.recovery()?;
    let vault = common.vault_to_restore(&recovery).await?;
    let machine = &args.machine.machine;
    let view = PointView::open(&vault, recovery, machine, args.point.0, args.cache_mib.saturating_mul(1 << 20)).await;
    let view = view.map_err(|e| e.context(format!("serve {machine}")))?;
    let names = chosen(&view, &args)?;
    let mut exports: BTreeMap<String, Arc<dyn Disk>> = BTreeMap::new();
    for name in &names {
        let disk = view.disk(name)?;
        let export: Arc<dyn Disk> = match &args.overlay {
            Some(path) => Arc::new(Overlay::open(disk, path)?),
            None => Arc::new(ReadOnly::new(disk)),
        };
        exports.insert(name.to_string(), export);
    }
    let disks: Vec<Arc<dyn Disk>> = exports.values().cloned().collect();
    let listening = Listening::at(&args.nbd).await?;
    let uris = |name: &DiskName| listening.address().uri(name.as_str());
    let listed = names.iter().map(|name| json!({ "name": name, "uri": uris(name) })).collect::<Vec<_>>();
    let document = json!({ "seq": view.key().seq, "time": view.meta().source_time, "disks": listed });
    output::document(common.json, &document, || {
        let mut rows = vec![vec!["DISK".to_owned(), "EXPORT".to_owned()]];
        rows.extend(names.iter().map(|name| vec![name.to_string(), uris(name)]));
        format!("Point {} of {}:\n{}", view.key().seq, view.meta().source_time, output::table(&rows))
    })?;
    tokio::select! {
        served = Server::new(exports).serve(&listening) => served?,
        () = stop => {}
    }
    for disk in disks {
        disk.flush().await?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The disks that are served.
fn chosen(view: &PointView, args: &Serve) -> Result<Vec<DiskName>> {
    let content = view.meta().disks.iter().filter(|d| !d.excluded).map(|d| d.name.clone());
    let names: Vec<DiskName> = args.disk.clone().map_or_else(|| content.collect(), |name| vec![name]);
    if args.overlay.is_some() && names.len() != 1 {
        let there: Vec<&str> = names.iter().map(DiskName::as_str).collect();
        let why = format!("an overlay is of one disk: pass --disk NAME with one of {}", there.join(", "));
        return Err(Error::new(ErrorKind::Usage, why));
    }
    Ok(names)
}
